//! What the router chooses, without a host.

use my_plugin::MyPlugin;
use plugin_sdk::{Error, testing};

#[test]
fn most_free_memory_wins() {
    let router = MyPlugin::from_options("").expect("it has defaults");
    let mut fleet = testing::fleet(3);
    fleet[1].free_bytes = 40 << 30;
    let (choice, reasons) = testing::route(&*router, &fleet).expect("it chooses");
    assert_eq!(choice.index, 1);
    assert!(reasons.contains(&format!("1\tfree_bytes={}", 40u64 << 30)), "{reasons}");
}

#[test]
fn a_queue_may_outweigh_memory() {
    let router = MyPlugin::from_options(r#"{"queued_bytes": 1073741824}"#).expect("it is an option");
    let mut fleet = testing::fleet(2);
    fleet[0].free_bytes = fleet[1].free_bytes + (2 << 30);
    fleet[0].queued = 5;
    assert_eq!(testing::route(&*router, &fleet).expect("it chooses").0.index, 1);
}

#[test]
fn unknown_options_are_refused() {
    let refused = MyPlugin::from_options(r#"{"queud_bytes": 1}"#).map(drop);
    assert!(matches!(refused, Err(Error::InvalidInput(_))), "{refused:?}");
}
