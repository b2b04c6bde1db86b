//! What the architecture computes, without a host.

use my_plugin::{MyModel, MyPlugin};
use plugin_sdk::{Architecture, Error, Model, Progress, Result, testing};

const CONFIG: &str = r#"{"model_type": "my-plugin", "vocab_size": 50}"#;

fn load(config: &str) -> Result<MyModel> {
    MyPlugin.load(&testing::source(config), &testing::options(), &Progress::SILENT)
}

#[test]
fn after_a_number_comes_the_next() {
    let mut model = load(CONFIG).expect("it loads");
    assert_eq!(testing::generate(&mut model, &[40, 41], 3), Ok(vec![42, 43, 44]));
}

#[test]
fn rows_of_one_step_do_not_disturb_each_other() {
    let mut model = load(CONFIG).expect("it loads");
    let alone = {
        let mut sequence = model.sequence().expect("room");
        testing::feed(&mut model, &mut sequence, &[7, 8]).expect("fed")
    };
    let (mut one, mut other) = (model.sequence().expect("room"), model.sequence().expect("room"));
    let together = testing::feed_all(&mut model, vec![(&mut other, &[1]), (&mut one, &[7, 8])]).expect("fed");
    assert_eq!(together[1], Ok(alone));
}

#[test]
fn what_it_cannot_serve_it_refuses() {
    assert!(matches!(load("{").map(drop), Err(Error::InvalidInput(_))));
    assert!(matches!(load(r#"{"model_type": "llama"}"#).map(drop), Err(Error::Unsupported(_))));
}

#[test]
fn a_plan_is_what_the_model_turns_out_to_be() {
    let plan = MyPlugin.plan(&testing::source(CONFIG), &testing::options()).expect("planned");
    let info = load(CONFIG).expect("it loads").info();
    assert_eq!(plan.vocab_size as usize, info.vocab_size);
    assert!(info.max_context <= plan.max_context as usize);
}
