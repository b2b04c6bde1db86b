//! What the evictor chooses, without a host.

use my_plugin::MyPlugin;
use plugin_sdk::{Error, testing};

#[test]
fn the_longest_idle_goes_first_and_no_more_than_needed() {
    let evictor = MyPlugin::from_options("").expect("it has defaults");
    let mut residents = [testing::resident(1, 10), testing::resident(2, 20), testing::resident(3, 30)];
    residents[1].last_used_ms = 100;
    residents[2].last_used_ms = 200;
    let (choice, reasons) = testing::evict(&*evictor, &residents, 25).expect("it chooses");
    assert_eq!(choice.victims, [1, 2]);
    assert_eq!(reasons.lines().count(), 3);
}

#[test]
fn what_may_not_go_stays_and_a_need_too_large_moves_nothing() {
    let evictor = MyPlugin::from_options("").expect("it has defaults");
    let mut residents = [testing::resident(1, 10), testing::resident(2, 20)];
    residents[0].eligible = 0;
    residents[0].last_used_ms = 0;
    assert_eq!(testing::evict(&*evictor, &residents, 15).expect("it chooses").0.victims, [1]);
    assert!(testing::evict(&*evictor, &residents, 25).expect("it chooses").0.victims.is_empty());
}

#[test]
fn unknown_options_are_refused() {
    let refused = MyPlugin::from_options(r#"{"reload": 1}"#).map(drop);
    assert!(matches!(refused, Err(Error::InvalidInput(_))), "{refused:?}");
}
