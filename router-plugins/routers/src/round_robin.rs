//! `round_robin`: every warm node in turn.

use plugin_sdk::{Candidate, Explain, Residency, Result, RouteChoice, RouteRequest, Router};

use crate::pool;

/// Takes the warm nodes in turn, by the gateway's count of routed requests.
pub struct RoundRobin;

plugin_sdk::router!("round_robin", "every node that has the model, in turn", RoundRobin::from_options);

impl RoundRobin {
    /// Takes no options.
    ///
    /// # Errors
    /// `InvalidInput` when there are any.
    pub fn from_options(options: &str) -> Result<Box<dyn Router>> {
        strategy_options::none("round_robin", options)?;
        Ok(Box::new(Self))
    }
}

impl Router for RoundRobin {
    fn choose(
        &self,
        request: &RouteRequest<'_>,
        candidates: &[Candidate],
        explain: &mut Explain<'_>,
    ) -> Result<RouteChoice> {
        let tier = pool::warmest(candidates);
        let warm = candidates.iter().filter(|c| c.residency == tier).count().max(1);
        let turn = (request.ordinal % warm as u64) as usize;
        let place = |index: usize| candidates[..index].iter().filter(|c| c.residency == tier).count();
        if tier == Residency::LOADABLE {
            return pool::least(request, candidates, explain, |_, _| 0.0, |_, _| String::new());
        }
        pool::least(
            request,
            candidates,
            explain,
            |index, _| ((place(index) + warm - turn) % warm) as f64,
            |index, _| format!("place={} turn={turn} of={warm}", place(index)),
        )
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::table::{candidate, choose, cold, request};

    #[test]
    fn takes_turns_among_warm_nodes_whatever_their_load() {
        let nodes = [candidate(1), cold(2), Candidate { inflight: 99, ..candidate(3) }, candidate(4)];
        let chosen: Vec<_> = (0..6)
            .map(|ordinal| choose(&RoundRobin, &RouteRequest { ordinal, ..request() }, &nodes))
            .collect();
        assert_eq!(chosen, [0, 2, 3, 0, 2, 3]);
    }

    #[test]
    fn takes_no_options() {
        assert!(RoundRobin::from_options("{}").is_ok());
        assert!(RoundRobin::from_options(r#"{"x":1}"#).is_err());
    }
}
