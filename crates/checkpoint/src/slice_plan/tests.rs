#![allow(clippy::unwrap_used)]

use std::collections::{BTreeMap, BTreeSet};

use expect_test::{Expect, expect};
use proptest::prelude::*;

use super::*;
use crate::decoder_config::{Architecture, Family};
use crate::safetensors_header::{NewTensor, SafetensorsHeader, write_header};

/// The name, dtype and shape of a tensor in a file.
type Listed = (String, Dtype, Vec<u64>);

fn architecture(family: Family, layers: u32) -> Architecture {
    Architecture {
        family,
        n_layers: LayerCount(layers),
        d_model: 8,
        n_heads: 2,
        n_kv_heads: None,
        d_ff: None,
        max_positions: 16,
        rope_theta: None,
        tied_head: None,
        inverse_layer_scale: false,
        no_bias: false,
        pad_vocab_to_multiple_of: None,
    }
}

fn gpt2(layers: u32) -> DecoderConfig {
    architecture(Family::Gpt2, layers).config(32)
}

fn llama(layers: u32) -> DecoderConfig {
    architecture(Family::Llama, layers).config(32)
}

/// Returns the header of a file with these tensors.
fn header(tensors: &[Listed]) -> SafetensorsHeader {
    let new: Vec<NewTensor<'_>> =
        tensors.iter().map(|(name, dtype, shape)| NewTensor { name, dtype: *dtype, shape }).collect();
    let bytes = write_header(&new).unwrap();
    let data: u64 = tensors.iter().map(|(_, dtype, shape)| dtype.size_bytes() * shape.iter().product::<u64>()).sum();
    SafetensorsHeader::parse(&bytes[8..], bytes.len() as u64 + data).unwrap()
}

/// Returns the names, dtypes and shapes of a complete file of `config`.
fn listed(config: &DecoderConfig, dtype: Dtype) -> Vec<Listed> {
    let specs = config.tensors().into_iter().filter(|spec| spec.tied_to.is_none());
    specs.map(|spec| (spec.name, dtype, spec.shape)).collect()
}

fn inventory_of(config: &DecoderConfig, tensors: &[Listed]) -> Result<Inventory, PlanError> {
    Inventory::new(config.clone(), &[("model.safetensors".to_owned(), header(tensors))])
}

fn inventory(config: &DecoderConfig) -> Inventory {
    inventory_of(config, &listed(config, Dtype::F16)).unwrap()
}

fn first(layers: u32, reference: u32) -> LayerMap {
    layer_map(&LayerMapRule::First, LayerCount(layers), LayerCount(reference)).unwrap()
}

fn inherit(reference: &Inventory, layers: &LayerMap, inherit: InheritSet) -> Result<SlicePlan, PlanError> {
    SlicePlan::new(Inheritance { reference, layer_map: layers, inherit, previous: None })
}

/// Checks the origins of the tensors outside of the blocks, and of one tensor per block.
fn check(plan: &SlicePlan, expected: Expect) {
    let mut text = String::new();
    for placement in plan.tensors() {
        let shown = match placement.target.role {
            TensorRole::Block { .. } => {
                placement.target.name.ends_with("ln_1.weight")
                    || placement.target.name.ends_with("input_layernorm.weight")
            }
            _ => true,
        };
        if shown {
            let origin = match &placement.origin {
                Origin::Copied { source, tensor } => format!("{source} {}", tensor.name),
                Origin::Tied { to } => format!("tied to {to}"),
                Origin::Fresh { init } => format!("{init:?}"),
            };
            text += &format!("{} <- {origin}\n", placement.target.name);
        }
    }
    expected.assert_eq(&text);
}

#[test]
fn everything_is_inherited_by_default() {
    check(
        &inherit(&inventory(&gpt2(4)), &first(2, 4), InheritSet::ALL).unwrap(),
        expect![[r#"
            transformer.wte.weight <- reference transformer.wte.weight
            transformer.wpe.weight <- reference transformer.wpe.weight
            transformer.h.0.ln_1.weight <- reference transformer.h.0.ln_1.weight
            transformer.h.1.ln_1.weight <- reference transformer.h.1.ln_1.weight
            transformer.ln_f.weight <- reference transformer.ln_f.weight
            transformer.ln_f.bias <- reference transformer.ln_f.bias
            lm_head.weight <- tied to transformer.wte.weight
        "#]],
    );
    let list = layer_map(&LayerMapRule::List(vec![3, 0, 0]), LayerCount(3), LayerCount(4)).unwrap();
    check(
        &inherit(&inventory(&llama(4)), &list, InheritSet::ALL).unwrap(),
        expect![[r#"
            model.embed_tokens.weight <- reference model.embed_tokens.weight
            model.layers.0.input_layernorm.weight <- reference model.layers.3.input_layernorm.weight
            model.layers.1.input_layernorm.weight <- reference model.layers.0.input_layernorm.weight
            model.layers.2.input_layernorm.weight <- reference model.layers.0.input_layernorm.weight
            model.norm.weight <- reference model.norm.weight
            lm_head.weight <- reference lm_head.weight
        "#]],
    );
}

#[test]
fn every_family_s_blocks_follow_the_list() {
    let list = layer_map(&LayerMapRule::List(vec![0, 2, 2]), LayerCount(3), LayerCount(3)).unwrap();
    for family in Family::ALL {
        let config = architecture(family, 3).config(32);
        let plan = inherit(&inventory(&config), &list, InheritSet::ALL).unwrap();
        let names: BTreeSet<&str> = plan.tensors().iter().map(|placement| placement.target.name.as_str()).collect();
        assert_eq!(names.len(), config.tensors().len(), "{family:?}");
        for placement in plan.tensors() {
            let name = &placement.target.name;
            let source = match placement.target.role {
                TensorRole::Block { layer, .. } => {
                    name.replacen(&format!(".{layer}."), &format!(".{}.", [0, 2, 2][layer as usize]), 1)
                }
                _ => name.clone(),
            };
            match &placement.origin {
                Origin::Copied { source: Source::Reference, tensor } => assert_eq!(tensor.name, source),
                Origin::Tied { to } => assert!(names.contains(to.as_str()) && name == "lm_head.weight"),
                origin => panic!("{name}: {origin:?}"),
            }
        }
    }
}

#[test]
fn the_official_code_copies_blocks_and_head() {
    check(
        &inherit(&inventory(&gpt2(2)), &first(1, 2), InheritSet::OFFICIAL_CODE).unwrap(),
        expect![[r#"
            transformer.wte.weight <- reference transformer.wte.weight
            transformer.wpe.weight <- Normal { std: 0.02 }
            transformer.h.0.ln_1.weight <- reference transformer.h.0.ln_1.weight
            transformer.ln_f.weight <- Ones
            transformer.ln_f.bias <- Zeros
            lm_head.weight <- tied to transformer.wte.weight
        "#]],
    );
    check(
        &inherit(&inventory(&llama(2)), &first(1, 2), InheritSet::OFFICIAL_CODE).unwrap(),
        expect![[r#"
            model.embed_tokens.weight <- Normal { std: 0.02 }
            model.layers.0.input_layernorm.weight <- reference model.layers.0.input_layernorm.weight
            model.norm.weight <- Ones
            lm_head.weight <- reference lm_head.weight
        "#]],
    );
}

#[test]
fn blocks_alone_and_nothing() {
    check(
        &inherit(&inventory(&gpt2(2)), &first(1, 2), InheritSet::BLOCKS).unwrap(),
        expect![[r#"
            transformer.wte.weight <- Normal { std: 0.02 }
            transformer.wpe.weight <- Normal { std: 0.02 }
            transformer.h.0.ln_1.weight <- reference transformer.h.0.ln_1.weight
            transformer.ln_f.weight <- Ones
            transformer.ln_f.bias <- Zeros
            lm_head.weight <- tied to transformer.wte.weight
        "#]],
    );
    let nothing = inherit(&inventory(&llama(2)), &first(1, 2), InheritSet::NOTHING).unwrap();
    assert_eq!((nothing.copied().count(), nothing.copied_bytes()), (0, 0));
    assert!(nothing.tensors().iter().all(|p| p.dtype == Dtype::F16), "a control has the reference's dtype");
    let fresh = SlicePlan::fresh(llama(2));
    assert_eq!(fresh.fresh_tensors().count(), fresh.tensors().len());
    assert_eq!(fresh.size_bytes(), 4 * fresh.config().parameters());
}

#[test]
fn carrying_takes_the_previous_layers_first() {
    let reference = inventory(&gpt2(4));
    let previous = inventory_of(&gpt2(2), &listed(&gpt2(2), Dtype::F32)).unwrap();
    let carry = |layers: &LayerMap, inherit, previous: &Inventory| {
        SlicePlan::new(Inheritance { reference: &reference, layer_map: layers, inherit, previous: Some(previous) })
    };
    for inherit in [InheritSet::ALL, InheritSet::OFFICIAL_CODE, InheritSet::BLOCKS] {
        let plan = carry(&first(3, 4), inherit, &previous).unwrap();
        check(
            &plan,
            expect![[r#"
                transformer.wte.weight <- previous transformer.wte.weight
                transformer.wpe.weight <- previous transformer.wpe.weight
                transformer.h.0.ln_1.weight <- previous transformer.h.0.ln_1.weight
                transformer.h.1.ln_1.weight <- previous transformer.h.1.ln_1.weight
                transformer.h.2.ln_1.weight <- reference transformer.h.2.ln_1.weight
                transformer.ln_f.weight <- previous transformer.ln_f.weight
                transformer.ln_f.bias <- previous transformer.ln_f.bias
                lm_head.weight <- tied to transformer.wte.weight
            "#]],
        );
        assert_eq!(plan.tensors()[0].dtype, Dtype::F32, "each copy keeps its own dtype");
    }
    // The parts apply to the new layers only. Trained layers are carried over as a whole.
    let plan = carry(&first(3, 4), InheritSet::of(&[InheritPart::Attention]), &previous).unwrap();
    let fresh: Vec<&str> = plan.fresh_tensors().map(|placement| placement.target.name.as_str()).collect();
    assert!(fresh.iter().all(|name| name.starts_with("transformer.h.2.") && !name.contains("attn")), "{fresh:?}");
    assert_eq!(fresh.len(), 8, "two norms and two projections, with biases");
    let refused = |result: Result<SlicePlan, PlanError>, expected: Expect| {
        expected.assert_eq(&result.unwrap_err().to_string());
    };
    refused(
        carry(&first(1, 4), InheritSet::ALL, &previous),
        expect!["the previous candidate cannot be carried over: it has 2 layers, more than the target's 1"],
    );
    let last = layer_map(&LayerMapRule::FirstAndLast, LayerCount(3), LayerCount(4)).unwrap();
    refused(
        carry(&last, InheritSet::ALL, &previous),
        expect![
            "the previous candidate cannot be carried over: the layer map is not the first n layers, so the next layers are not defined"
        ],
    );
    let wider = DecoderConfig { d_ff: 64, ..gpt2(2) };
    refused(
        carry(&first(3, 4), InheritSet::ALL, &inventory(&wider)),
        expect![
            "the previous candidate cannot be carried over: its config.json differs from the reference's in more than the number of layers"
        ],
    );
}

#[test]
fn a_scaled_block_must_not_move() {
    let reference = inventory(&DecoderConfig { inverse_layer_scale: true, ..gpt2(4) });
    let map = layer_map(&LayerMapRule::FirstAndLast, LayerCount(2), LayerCount(4)).unwrap();
    expect![
        "layer 3 of the reference would become layer 1 of the target, but the reference sets scale_attn_by_inverse_layer_idx, which divides the attention scores of layer i by i + 1: the copied block would compute something different. Use the first n layers"
    ]
    .assert_eq(&inherit(&reference, &map, InheritSet::ALL).unwrap_err().to_string());
    assert!(inherit(&reference, &map, InheritSet::NOTHING).is_ok(), "fresh blocks do not move");
    let without_attention = InheritSet::of(&[InheritPart::Mlp, InheritPart::Norms, InheritPart::Head]);
    assert!(inherit(&reference, &map, without_attention).is_ok(), "only attention depends on the layer's index");
    assert!(inherit(&reference, &map, InheritSet::of(&[InheritPart::Attention])).is_err());
    assert!(inherit(&reference, &first(2, 4), InheritSet::ALL).is_ok());
    let list = layer_map(&LayerMapRule::List(vec![0, 1]), LayerCount(2), LayerCount(4)).unwrap();
    assert!(inherit(&reference, &list, InheritSet::ALL).is_ok());
}

#[test]
fn more_layers_than_there_are() {
    for rule in [LayerMapRule::First, LayerMapRule::FirstAndLast] {
        let error = layer_map(&rule, LayerCount(9), LayerCount(8)).unwrap_err();
        assert_eq!(error.to_string(), "the target asks for 9 layers but the reference has only 8");
        // A number too large for memory is rejected before a list is allocated.
        assert!(layer_map(&rule, LayerCount(u32::MAX), LayerCount(8)).is_err());
    }
    expect!["layer_map[1]: layer 8 does not exist: the reference has 8 layers"]
        .assert_eq(&layer_map(&LayerMapRule::List(vec![0, 8]), LayerCount(2), LayerCount(8)).unwrap_err().to_string());
    let long = LayerMapRule::List(vec![0; 1025]);
    expect!["the target asks for 1025 layers but the reference has only 8"]
        .assert_eq(&layer_map(&long, LayerCount(1025), LayerCount(8)).unwrap_err().to_string());
    let deeper = layer_map(&LayerMapRule::List(vec![0, 0, 1]), LayerCount(3), LayerCount(2)).unwrap();
    assert_eq!(deeper.layers(), LayerCount(3), "a list may repeat layers");
}

#[test]
fn a_tokenizer_must_fit() {
    assert!(check_tokenizer(&gpt2(1), "tokenizer.json", 32).is_ok());
    expect!["the tokenizer (file:///m/tokenizer.json) has 33 entries but the token embedding has only 32 rows"]
        .assert_eq(&check_tokenizer(&gpt2(1), "file:///m/tokenizer.json", 33).unwrap_err().to_string());
}

#[test]
fn names_in_files_are_read_as_they_are_found() {
    let config = gpt2(1);
    let mut tensors = listed(&config, Dtype::Bf16);
    for (name, _, _) in &mut tensors {
        *name = name.trim_start_matches("transformer.").to_owned();
    }
    tensors.push(("h.0.attn.bias".to_owned(), Dtype::U8, vec![1, 1, 16, 16]));
    tensors.push(("h.0.attn.masked_bias".to_owned(), Dtype::F32, vec![]));
    tensors.push(("lm_head.weight".to_owned(), Dtype::Bf16, vec![32, 8]));
    let inventory = inventory_of(&config, &tensors).unwrap();
    assert_eq!(inventory.tensors().count(), config.tensors().len() - 1, "buffers and the tied copy are dropped");
    let found = inventory.tensor("transformer.h.0.attn.c_attn.weight").unwrap();
    assert_eq!((found.name.as_str(), found.dtype), ("h.0.attn.c_attn.weight", Dtype::Bf16));
}

#[test]
fn files_that_are_not_a_model() {
    let config = llama(2);
    let changed = |change: fn(&mut Vec<Listed>), expected: Expect| {
        let mut tensors = listed(&config, Dtype::F32);
        change(&mut tensors);
        expected.assert_eq(&inventory_of(&config, &tensors).unwrap_err().to_string());
    };
    changed(
        |tensors| tensors.retain(|(name, _, _)| name != "model.norm.weight"),
        expect![
            "tensor `model.norm.weight` is missing: config.json says 2 layers of the llama family, and no file contains it"
        ],
    );
    changed(
        |tensors| tensors.truncate(10),
        expect![
            "tensor `model.layers.1.input_layernorm.weight` and 10 more are missing: config.json says 2 layers of the llama family, and no file contains them"
        ],
    );
    changed(
        |tensors| tensors.push(("model.layers.2.input_layernorm.weight".to_owned(), Dtype::F32, vec![8])),
        expect![
            "model.safetensors: tensor `model.layers.2.input_layernorm.weight` belongs to layer 2, but config.json says that there are 2 layers, 0 to 1: if the file is right, correct the number of layers in config.json"
        ],
    );
    changed(
        |tensors| tensors[1].2 = vec![4, 2],
        expect![
            "model.safetensors: tensor `model.layers.0.input_layernorm.weight` has shape [4, 2]; config.json requires [8]"
        ],
    );
    changed(
        |tensors| tensors[1].1 = Dtype::I8,
        expect![
            "model.safetensors: tensor `model.layers.0.input_layernorm.weight` has dtype I8; weights must be F32, F16 or BF16. If they are quantised, use the original model, or dequantise this one first (transformers: `model = AutoModelForCausalLM.from_pretrained(FOLDER).dequantize()`, then `model.save_pretrained(NEW)`)"
        ],
    );
    changed(
        |tensors| tensors[1].0 = "model.layers.00.input_layernorm.weight".to_owned(),
        expect!["model.safetensors: tensor `model.layers.00.input_layernorm.weight` is unknown"],
    );
    let gpt2 = gpt2(1);
    let mut twice = listed(&gpt2, Dtype::F32);
    twice.push(("wte.weight".to_owned(), Dtype::F32, vec![32, 8]));
    expect![
        "model.safetensors: tensor `wte.weight` occurs twice: also as `transformer.wte.weight` in model.safetensors"
    ]
    .assert_eq(&inventory_of(&gpt2, &twice).unwrap_err().to_string());
}

fn any_config() -> impl Strategy<Value = DecoderConfig> {
    let family = proptest::sample::select(Family::ALL.to_vec());
    (family, 1_u32..6, 1_u32..4, 1_u32..40, any::<bool>()).prop_map(|(family, layers, heads, vocab, tied)| {
        let untied = matches!(family, Family::Llama | Family::GptNeox) && !tied;
        let heads = if family == Family::MosaicGpt { heads.next_power_of_two() } else { heads };
        let architecture = Architecture {
            d_model: heads * 4,
            n_heads: heads,
            tied_head: Some(!untied),
            ..architecture(family, layers)
        };
        architecture.validate_shape().unwrap();
        architecture.config(vocab)
    })
}

fn any_set() -> impl Strategy<Value = InheritSet> {
    proptest::sample::subsequence(InheritPart::ALL.to_vec(), 0..=7).prop_map(|parts| parts.into_iter().collect())
}

/// Returns the part that a tensor belongs to, from its name alone.
fn part_by_name(name: &str) -> InheritPart {
    let inside_block = name.split('.').any(|word| word.parse::<u32>().is_ok());
    let any = |words: &[&str]| words.iter().any(|word| name.contains(word));
    match inside_block {
        true if any(&["ln_", "_ln", "norm"]) => InheritPart::Norms,
        true if any(&["attn", "attention"]) => InheritPart::Attention,
        true => InheritPart::Mlp,
        false if any(&["wpe", "embed_positions"]) => InheritPart::PositionEmbedding,
        false if any(&["lm_head", "embed_out"]) => InheritPart::Head,
        false if any(&["wte", "embed_tokens", "embed_in"]) => InheritPart::TokenEmbedding,
        false => InheritPart::FinalNorm,
    }
}

#[test]
fn norms_over_queries_and_keys_are_norms() {
    let config = architecture(Family::MosaicGpt, 2).config(32);
    let plan = |parts: &[InheritPart]| inherit(&inventory(&config), &first(1, 2), InheritSet::of(parts)).unwrap();
    let names = |plan: SlicePlan| plan.copied().map(|p| p.target.name.clone()).collect::<Vec<_>>().join("\n");
    expect![[r#"
        transformer.blocks.0.ln_1.weight
        transformer.blocks.0.attn.q_ln.weight
        transformer.blocks.0.attn.k_ln.weight
        transformer.blocks.0.ln_2.weight"#]]
    .assert_eq(&names(plan(&[InheritPart::Norms])));
    expect![[r#"
        transformer.blocks.0.attn.Wqkv.weight
        transformer.blocks.0.attn.out_proj.weight"#]]
    .assert_eq(&names(plan(&[InheritPart::Attention])));
}

proptest! {
    /// For every family and any set of parts, exactly those tensors are copied, from the kept
    /// layers, and all others are fresh. Either name selects a tied head.
    #[test]
    fn a_set_copies_exactly_its_parts(config in any_config(), set in any_set()) {
        let depth = config.n_layers.0;
        let plan = inherit(&inventory(&config), &first(depth, depth), set).unwrap();
        let tied = config.tied_head && (set.has(InheritPart::TokenEmbedding) || set.has(InheritPart::Head));
        let wanted = |name: &str| match part_by_name(name) {
            InheritPart::TokenEmbedding if tied => true,
            part => set.has(part),
        };
        for placement in plan.tensors() {
            let name = &placement.target.name;
            match &placement.origin {
                Origin::Copied { tensor, .. } => {
                    prop_assert!(wanted(name), "{name} is copied");
                    prop_assert_eq!(&tensor.name, name);
                }
                Origin::Fresh { init } => {
                    prop_assert!(!wanted(name), "{name} is fresh");
                    prop_assert_eq!(init, &placement.target.init);
                }
                Origin::Tied { .. } => prop_assert!(config.tied_head && part_by_name(name) == InheritPart::Head),
            }
        }
        let stored = || plan.tensors().iter().filter(|p| !matches!(p.origin, Origin::Tied { .. }));
        let counted = |set: InheritSet| stored().filter(|p| set.has(part_by_name(&p.target.name))).count();
        prop_assert_eq!(counted(plan.copied_parts()), plan.copied().count());
        prop_assert_eq!(counted(plan.fresh_parts()), plan.fresh_tensors().count());
    }

    #[test]
    fn every_target_tensor_has_one_origin_inside_its_source(
        config in any_config(),
        seed in any::<proptest::sample::Index>(),
        picks in proptest::collection::vec(any::<proptest::sample::Index>(), 1..8),
        set in any_set(),
    ) {
        let depth = config.n_layers.0;
        let dtypes = [Dtype::F32, Dtype::F16, Dtype::Bf16];
        let tensors: Vec<_> = listed(&config, Dtype::F32)
            .into_iter()
            .enumerate()
            .map(|(i, (name, _, shape))| (name, dtypes[(i + seed.index(3)) % 3], shape))
            .collect();
        let file = header(&tensors);
        let file_bytes = file.tensors().last().unwrap().bytes.end;
        let reference = Inventory::new(config.clone(), &[("m.safetensors".to_owned(), file)]).unwrap();
        let sources: Vec<u32> = picks.iter().map(|pick| pick.index(depth as usize) as u32).collect();
        let map = LayerMap::new(sources.clone(), config.n_layers).unwrap();
        let plan = inherit(&reference, &map, set).unwrap();

        let expected: Vec<TensorSpec> = config.with_layers(map.layers()).tensors();
        let planned: Vec<&TensorSpec> = plan.tensors().iter().map(|p| &p.target).collect();
        prop_assert_eq!(planned, expected.iter().collect::<Vec<_>>());
        let names: BTreeSet<&str> = plan.tensors().iter().map(|p| p.target.name.as_str()).collect();
        prop_assert_eq!(names.len(), plan.tensors().len());

        let by_name: BTreeMap<&str, &Listed> = tensors.iter().map(|t| (t.0.as_str(), t)).collect();
        for placement in plan.tensors() {
            match &placement.origin {
                Origin::Copied { source, tensor } => {
                    prop_assert_eq!(*source, Source::Reference);
                    prop_assert_eq!(&tensor.shape, &placement.target.shape);
                    prop_assert_eq!(tensor.dtype, by_name[tensor.name.as_str()].1);
                    prop_assert_eq!(tensor.bytes.end - tensor.bytes.start, placement.size_bytes());
                    prop_assert_eq!(tensor.reading, Reading::Whole);
                    prop_assert!(tensor.bytes.end <= file_bytes);
                    if let TensorRole::Block { layer, .. } = placement.target.role {
                        let kept = sources[layer as usize];
                        let of_kept = tensor.name.contains(&format!(".{kept}."));
                        prop_assert!(of_kept, "{} is not of layer {}", tensor.name, kept);
                    }
                    prop_assert_ne!(set, InheritSet::NOTHING);
                }
                Origin::Tied { to } => prop_assert!(names.contains(to.as_str())),
                Origin::Fresh { .. } => prop_assert_ne!(set, InheritSet::ALL),
            }
        }
        prop_assert_eq!(plan.copied_bytes() + plan.fresh_tensors().map(Placement::size_bytes).sum::<u64>(), plan.size_bytes());
    }

    /// With `Carry`, every tensor occurs once: first the previous candidate's layers, then the next
    /// ones of the reference.
    #[test]
    fn a_carried_target_has_every_tensor_once(config in any_config(), previous in 1_u32..6, layers in 1_u32..6) {
        let depth = config.n_layers.0;
        let (previous, layers) = (previous.min(depth), layers.min(depth));
        let reference = inventory(&config);
        let candidate = config.with_layers(LayerCount(previous));
        let candidate = inventory_of(&candidate, &listed(&candidate, Dtype::F32)).unwrap();
        let map = first(layers, depth);
        let plan = SlicePlan::new(Inheritance {
            reference: &reference,
            layer_map: &map,
            inherit: InheritSet::ALL,
            previous: Some(&candidate),
        });
        if previous > layers {
            let is_refused = matches!(plan, Err(PlanError::Carry { .. }));
            prop_assert!(is_refused);
            return Ok(());
        }
        let plan = plan.unwrap();
        let planned: Vec<&TensorSpec> = plan.tensors().iter().map(|p| &p.target).collect();
        let expected = config.with_layers(LayerCount(layers)).tensors();
        prop_assert_eq!(planned, expected.iter().collect::<Vec<_>>());
        for placement in plan.tensors() {
            let from_reference = matches!(placement.target.role, TensorRole::Block { layer, .. } if layer >= previous);
            match &placement.origin {
                Origin::Copied { source, .. } => {
                    prop_assert_eq!(*source == Source::Reference, from_reference, "{}", placement.target.name);
                }
                Origin::Tied { .. } => prop_assert_eq!(placement.size_bytes(), 0),
                Origin::Fresh { .. } => prop_assert!(false, "{} is random", placement.target.name),
            }
        }
    }
}

/// safetensors' `save_model` keeps one name of a tensor that has two.
#[test]
fn a_tied_head_alone_is_the_embedding() {
    let config = gpt2(2);
    let mut tensors = listed(&config, Dtype::F32);
    tensors[0].0 = "lm_head.weight".to_owned();
    let inventory = inventory_of(&config, &tensors).unwrap();
    let embedding = inventory.tensor("transformer.wte.weight").unwrap();
    assert_eq!(embedding.name, "lm_head.weight");
    assert!(inventory.second_head().is_none());
}
