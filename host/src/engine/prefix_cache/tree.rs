//! A radix tree: values under sequences of symbols, common beginnings stored once.

use std::collections::HashMap;

use crate::engine::prompt::Symbol;

/// Names a node. Stays valid until the node's value is removed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(super) struct NodeId(u32);

const ROOT: NodeId = NodeId(0);

#[derive(Debug)]
struct Node<V> {
    parent: NodeId,
    /// Symbols between the parent and this node; empty at the root only.
    edge: Vec<Symbol>,
    children: HashMap<Symbol, NodeId>,
    value: Option<V>,
}

/// See the module. Every leaf but the root has a value.
#[derive(Debug)]
pub(super) struct Tree<V> {
    nodes: Vec<Option<Node<V>>>,
    vacant: Vec<NodeId>,
    values: usize,
    symbols: usize,
}

/// How far a path could be followed.
#[derive(Debug)]
pub(super) struct Walk {
    /// Symbols that matched.
    pub matched: usize,
    /// Nodes with a value that lie on the path as a whole, shortest first.
    pub complete: Vec<NodeId>,
    /// The node that was reached, or in whose edge the path ends.
    pub deepest: NodeId,
}

impl<V> Default for Tree<V> {
    fn default() -> Self {
        let root = Node { parent: ROOT, edge: Vec::new(), children: HashMap::new(), value: None };
        Self { nodes: vec![Some(root)], vacant: Vec::new(), values: 0, symbols: 0 }
    }
}

impl<V> Tree<V> {
    fn node(&self, id: NodeId) -> &Node<V> {
        self.nodes[id.0 as usize].as_ref().expect("the tree names only nodes it has")
    }

    fn node_mut(&mut self, id: NodeId) -> &mut Node<V> {
        self.nodes[id.0 as usize].as_mut().expect("the tree names only nodes it has")
    }

    fn add(&mut self, node: Node<V>) -> NodeId {
        match self.vacant.pop() {
            Some(id) => {
                self.nodes[id.0 as usize] = Some(node);
                id
            }
            None => {
                self.nodes.push(Some(node));
                NodeId(self.nodes.len() as u32 - 1)
            }
        }
    }

    /// Number of values.
    pub fn values(&self) -> usize {
        self.values
    }

    /// Symbols on all edges.
    pub fn symbols(&self) -> usize {
        self.symbols
    }

    /// The value of a node that may have gone.
    pub fn value(&self, id: NodeId) -> Option<&V> {
        self.nodes.get(id.0 as usize)?.as_ref()?.value.as_ref()
    }

    /// The value of a node that may have gone.
    pub fn value_mut(&mut self, id: NodeId) -> Option<&mut V> {
        self.nodes.get_mut(id.0 as usize)?.as_mut()?.value.as_mut()
    }

    /// All values.
    pub fn iter(&self) -> impl Iterator<Item = (NodeId, &V)> {
        self.nodes
            .iter()
            .enumerate()
            .filter_map(|(index, node)| Some((NodeId(index as u32), node.as_ref()?.value.as_ref()?)))
    }

    /// Follows a path as far as it goes.
    pub fn walk(&self, path: &[Symbol]) -> Walk {
        let mut walk = Walk { matched: 0, complete: Vec::new(), deepest: ROOT };
        loop {
            let node = self.node(walk.deepest);
            if node.value.is_some() {
                walk.complete.push(walk.deepest);
            }
            let rest = &path[walk.matched..];
            let Some(&child) = rest.first().and_then(|symbol| node.children.get(symbol)) else {
                return walk;
            };
            let edge = &self.node(child).edge;
            let common = common_prefix(edge, rest);
            walk.matched += common;
            walk.deepest = child;
            if common < edge.len() {
                return walk;
            }
        }
    }

    /// A node with a value that is `id` or lies below it.
    pub fn any_value_at_or_below(&self, mut id: NodeId) -> Option<NodeId> {
        loop {
            let node = self.node(id);
            if node.value.is_some() {
                return Some(id);
            }
            id = *node.children.values().next()?;
        }
    }

    /// The first `length` symbols on the way to a node.
    pub fn path(&self, id: NodeId, length: usize) -> Vec<Symbol> {
        let mut edges = Vec::new();
        let mut at = id;
        while at != ROOT {
            let node = self.node(at);
            edges.push(&node.edge);
            at = node.parent;
        }
        edges.into_iter().rev().flatten().copied().take(length).collect()
    }

    /// Puts a value under a path; the value that was there before, if any.
    pub fn insert(&mut self, path: &[Symbol], value: V) -> Option<V> {
        let walk = self.walk(path);
        let depth_of_deepest = self.depth(walk.deepest);
        let at = if walk.matched < depth_of_deepest {
            let keep = self.node(walk.deepest).edge.len() - (depth_of_deepest - walk.matched);
            self.split(walk.deepest, keep)
        } else {
            walk.deepest
        };
        let at = if walk.matched < path.len() {
            let edge = path[walk.matched..].to_vec();
            self.symbols += edge.len();
            let first = edge[0];
            let leaf = self.add(Node { parent: at, edge, children: HashMap::new(), value: None });
            self.node_mut(at).children.insert(first, leaf);
            leaf
        } else {
            at
        };
        let before = self.node_mut(at).value.replace(value);
        self.values += usize::from(before.is_none());
        before
    }

    fn depth(&self, id: NodeId) -> usize {
        let mut depth = 0;
        let mut at = id;
        while at != ROOT {
            let node = self.node(at);
            depth += node.edge.len();
            at = node.parent;
        }
        depth
    }

    /// Puts a node after the first `keep` symbols of `id`'s edge.
    fn split(&mut self, id: NodeId, keep: usize) -> NodeId {
        let parent = self.node(id).parent;
        let tail = self.node_mut(id).edge.split_off(keep);
        let head = std::mem::replace(&mut self.node_mut(id).edge, tail);
        let (first, next) = (head[0], self.node(id).edge[0]);
        let children = HashMap::from([(next, id)]);
        let middle = self.add(Node { parent, edge: head, children, value: None });
        self.node_mut(id).parent = middle;
        self.node_mut(parent).children.insert(first, middle);
        middle
    }

    /// Takes a value away, and with it the nodes nobody needs any more.
    pub fn remove(&mut self, id: NodeId) -> Option<V> {
        let value = self.nodes.get_mut(id.0 as usize)?.as_mut()?.value.take()?;
        self.values -= 1;
        self.prune(id);
        Some(value)
    }

    fn prune(&mut self, mut id: NodeId) {
        while id != ROOT && self.node(id).value.is_none() {
            match self.node(id).children.len() {
                0 => {
                    let node = self.nodes[id.0 as usize].take().expect("it was just looked at");
                    self.symbols -= node.edge.len();
                    self.vacant.push(id);
                    self.node_mut(node.parent).children.remove(&node.edge[0]);
                    id = node.parent;
                }
                1 => {
                    self.join_with_only_child(id);
                    return;
                }
                _ => return,
            }
        }
    }

    fn join_with_only_child(&mut self, id: NodeId) {
        let node = self.nodes[id.0 as usize].take().expect("prune looked at it");
        self.vacant.push(id);
        let child = *node.children.values().next().expect("prune counted one");
        let first = node.edge[0];
        let mut edge = node.edge;
        let child_node = self.node_mut(child);
        edge.append(&mut child_node.edge);
        child_node.edge = edge;
        child_node.parent = node.parent;
        self.node_mut(node.parent).children.insert(first, child);
    }
}

fn common_prefix(a: &[Symbol], b: &[Symbol]) -> usize {
    a.iter().zip(b).take_while(|(a, b)| a == b).count()
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use proptest::prelude::*;

    use super::*;

    proptest! {
        /// The oracle is a sorted map of whole paths.
        #[test]
        fn behaves_like_a_map_of_paths(
            operations in proptest::collection::vec(
                (any::<bool>(), proptest::collection::vec(0u64..3, 1..8)), 1..60),
            probe in proptest::collection::vec(0u64..3, 1..10),
        ) {
            let mut tree = Tree::default();
            let mut oracle = BTreeMap::new();
            for (index, (insert, path)) in operations.into_iter().enumerate() {
                if insert {
                    prop_assert_eq!(tree.insert(&path, index), oracle.insert(path, index));
                } else if let Some(index) = oracle.remove(&path) {
                    let node = tree.iter().find(|(_, value)| **value == index).unwrap().0;
                    prop_assert_eq!(tree.path(node, usize::MAX), path);
                    prop_assert_eq!(tree.remove(node), Some(index));
                }
            }
            prop_assert_eq!(tree.values(), oracle.len());
            let longest = oracle.keys().map(|path| common_prefix(path, &probe)).max().unwrap_or(0);
            let walk = tree.walk(&probe);
            prop_assert_eq!(walk.matched, longest);
            let complete: Vec<_> = walk.complete.iter().map(|&node| *tree.value(node).unwrap()).collect();
            let mut expected: Vec<_> = oracle.iter().filter(|(path, _)| probe.starts_with(path)).collect();
            expected.sort_by_key(|(path, _)| path.len());
            prop_assert_eq!(complete, expected.into_iter().map(|(_, &value)| value).collect::<Vec<_>>());
            if !oracle.is_empty() {
                let below = tree.any_value_at_or_below(walk.deepest).unwrap();
                prop_assert!(tree.path(below, usize::MAX).starts_with(&probe[..longest]));
            }
            let distinct: std::collections::BTreeSet<_> =
                oracle.keys().flat_map(|path| (1..=path.len()).map(|end| path[..end].to_vec())).collect();
            prop_assert_eq!(tree.symbols(), distinct.len());
        }
    }
}
