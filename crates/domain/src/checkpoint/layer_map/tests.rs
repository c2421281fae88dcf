#![allow(clippy::unwrap_used)]

use super::*;
use crate::spec::LayerMapRule;

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
