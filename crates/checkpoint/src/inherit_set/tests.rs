#![allow(clippy::unwrap_used)]

use expect_test::{Expect, expect};
use proptest::prelude::*;
use serde_json::{Value, json};

use super::*;

#[test]
fn presets_are_sets_of_parts() {
    use InheritPart::{Attention, Head, Mlp, Norms};
    for (name, set) in InheritSet::PRESETS {
        assert_eq!((set.preset(), set.to_string(), name.parse()), (Some(name), name.to_owned(), Ok(set)));
        assert_eq!(serde_json::to_value(set).unwrap(), json!(name), "same format as before parts existed");
    }
    assert_eq!(InheritSet::default(), InheritSet::ALL);
    assert_eq!(InheritSet::OFFICIAL_CODE.parts().collect::<Vec<_>>(), [Attention, Mlp, Norms, Head]);
    assert_eq!("norms,attention, mlp".parse(), Ok(InheritSet::BLOCKS), "the parts of a preset are that preset");
    assert_eq!(InheritSet::NOTHING.parts().count(), 0);
}

#[test]
fn what_is_no_set() {
    let check = |written: Value, expected: Expect| {
        expected.assert_eq(&serde_json::from_value::<InheritSet>(written).unwrap_err().to_string());
    };
    check(
        json!("atention"),
        expect![
            "`atention` is unknown: give one of all, official-code, blocks, nothing, or a list of the parts token_embedding, position_embedding, attention, mlp, norms, final_norm, head"
        ],
    );
    check(json!("blocks,head"), expect!["`blocks` is a preset, which cannot be combined with parts"]);
    check(
        json!(["attention", "norm"]),
        expect![
            "unknown variant `norm`, expected one of `token_embedding`, `position_embedding`, `attention`, `mlp`, `norms`, `final_norm`, `head`"
        ],
    );
    check(json!([]), expect![[r#"lists no parts: write "nothing" to inherit nothing"#]]);
    check(json!(7), expect!["invalid type: integer `7`, expected `all` or another preset, or a list of parts"]);
    expect![
        "`` is unknown: give one of all, official-code, blocks, nothing, or a list of the parts token_embedding, position_embedding, attention, mlp, norms, final_norm, head"
    ]
    .assert_eq(&"attention,".parse::<InheritSet>().unwrap_err());
}

proptest! {
    /// For any parts in any order, the set contains exactly these, and survives serialization.
    #[test]
    fn a_set_is_its_parts(parts in prop::collection::vec(prop::sample::select(InheritPart::ALL.to_vec()), 1..12)) {
        let set: InheritSet = parts.iter().copied().collect();
        for part in InheritPart::ALL {
            prop_assert_eq!(set.has(part), parts.contains(&part));
        }
        prop_assert_eq!(InheritSet::of(&parts), set);
        prop_assert_eq!(set.to_string().parse(), Ok(set));
        prop_assert_eq!(serde_json::from_value::<InheritSet>(serde_json::to_value(set).unwrap()).unwrap(), set);
    }
}
