#![allow(clippy::unwrap_used)]

use expect_test::{Expect, expect};
use proptest::prelude::*;

use super::*;
use crate::layer_map::LayerMapRule;

#[test]
fn a_map_names_every_layer_that_is_not_there() {
    let map = LayerMap::new(vec![0, 3, 3], LayerCount(4)).unwrap();
    assert_eq!((map.sources(), map.layers()), ([0, 3, 3].as_slice(), LayerCount(3)));
    let error = LayerMap::new(vec![4, 0, 9], LayerCount(4)).unwrap_err();
    let fields: Vec<&str> = error.0.iter().map(|v| v.field.as_str()).collect();
    assert_eq!(fields, ["layer_map[0]", "layer_map[2]"]);
    assert!(LayerMap::new(Vec::new(), LayerCount(4)).is_err());
}

#[test]
fn rules() {
    let map =
        |rule: LayerMapRule, layers| rule.layer_map(LayerCount(layers), LayerCount(8)).unwrap().sources().to_vec();
    assert_eq!(map(LayerMapRule::First, 3), [0, 1, 2]);
    assert_eq!(map(LayerMapRule::FirstAndLast, 3), [0, 1, 7]);
    assert_eq!(map(LayerMapRule::FirstAndLast, 1), [7]);
    assert_eq!(map(LayerMapRule::FirstAndLast, 8), [0, 1, 2, 3, 4, 5, 6, 7]);
    assert_eq!(map(LayerMapRule::List(vec![7, 0]), 2), [7, 0]);
}

#[test]
fn rules_that_ask_for_what_is_not_there() {
    let check = |rule: LayerMapRule, layers, reference, expected: Expect| {
        let error = rule.layer_map(LayerCount(layers), LayerCount(reference)).unwrap_err();
        expected.assert_eq(&error.to_string());
    };
    for rule in [LayerMapRule::First, LayerMapRule::FirstAndLast] {
        check(rule.clone(), 9, 8, expect!["layers: 9 is more than the reference's 8 layers"]);
        check(rule.clone(), 0, 8, expect!["layer_map: must name at least one layer"]);
        check(rule.clone(), 0, 0, expect!["layer_map: must name at least one layer"]);
        check(rule, u32::MAX, 8, expect!["layers: 4294967295 is more than the reference's 8 layers"]);
    }
    check(LayerMapRule::List(vec![]), 0, 8, expect!["layer_map: must name at least one layer"]);
    check(
        LayerMapRule::List(vec![0, 8]),
        2,
        8,
        expect!["layer_map[1]: layer 8 does not exist: the reference has 8 layers"],
    );
}

proptest! {
    /// For any input, an accepted map has the requested number of layers, and all of them exist in
    /// the reference.
    #[test]
    fn a_map_is_within_the_reference(
        which in 0..3,
        layers in 0u32..12,
        reference in 0u32..10,
        list in prop::collection::vec(0u32..12, 0..12),
    ) {
        let rule = match which {
            0 => LayerMapRule::First,
            1 => LayerMapRule::FirstAndLast,
            _ => LayerMapRule::List(list.clone()),
        };
        let asked = if which == 2 { list.len() as u32 } else { layers };
        let fits = if which == 2 { list.iter().all(|source| *source < reference) } else { layers <= reference };
        match rule.layer_map(LayerCount(layers), LayerCount(reference)) {
            Ok(map) => {
                prop_assert!(fits && asked >= 1);
                prop_assert_eq!(map.layers(), LayerCount(asked));
                prop_assert!(map.sources().iter().all(|source| *source < reference));
                if which < 2 {
                    prop_assert!(map.sources().windows(2).all(|pair| pair[0] < pair[1]), "no layer twice, in order");
                }
            }
            Err(_) => prop_assert!(!fits || asked == 0),
        }
    }
}
