//! `inheritune slice …` and `train …`: read-only queries about models.

use inheritune_api::v1;
use inheritune_domain::id::LayerCount;
use inheritune_domain::spec::{LayerMapRule, SliceSource, SliceSpec, defaults};

use super::{connect, location, print, read_recipe};
use crate::args::{Global, PlanSlice, SliceCommand, TrainCommand};
use crate::failure::Failure;
use crate::show;
use inheritune_report::numbers;

pub(super) async fn slice(global: &Global, command: SliceCommand) -> Result<(), Failure> {
    match command {
        SliceCommand::Inspect { checkpoint } => {
            let request = v1::InspectRequest { checkpoint: location(&checkpoint)? };
            let reply = connect(global).await?.slicing().inspect(request).await?.into_inner();
            print(global, &reply, "InspectResponse", inspected)
        }
        SliceCommand::Plan(args) => {
            let request = v1::PlanSliceRequest { spec: Some(slice_spec(args)?) };
            let reply = connect(global).await?.slicing().plan_slice(request).await?.into_inner();
            print(global, &reply, "PlanSliceResponse", planned)
        }
    }
}

pub(super) async fn train(global: &Global, command: TrainCommand) -> Result<(), Failure> {
    let TrainCommand::Estimate { checkpoint, recipe, tokens, train_tokens } = command;
    let spec = read_recipe(&recipe, &[])?.spec;
    let tokens = match (tokens, train_tokens) {
        (Some(id), _) => Some(v1::estimate_request::Tokens::TokensArtifactId(id.to_string())),
        (None, Some(n)) => Some(v1::estimate_request::Tokens::TrainTokens(n)),
        (None, None) => None,
    };
    let request = v1::EstimateRequest {
        model: Some(v1::estimate_request::Model::Checkpoint(location(&checkpoint)?)),
        tokens,
        training: Some((&spec.training).into()),
        data_fraction: Some(spec.target.data_fraction),
    };
    let reply = connect(global).await?.training().estimate(request).await?.into_inner();
    print(global, &reply, "EstimateResponse", estimated)
}

fn slice_spec(args: PlanSlice) -> Result<v1::SliceSpec, Failure> {
    let source = SliceSource::Checkpoint {
        checkpoint: location(&args.checkpoint)?.parse().map_err(Failure::invalid)?,
        layers: LayerCount(args.layers.unwrap_or(args.layer_map.len() as u32)),
        layer_map: if args.layer_map.is_empty() { LayerMapRule::First } else { LayerMapRule::List(args.layer_map) },
        inherit: args.inherit,
        previous: None,
    };
    let max_shard_size_bytes = args.max_shard_size.unwrap_or(defaults::max_shard_size_bytes());
    Ok((&SliceSpec { source, tokenizer: None, seed: 0, max_shard_size_bytes }).into())
}

fn shape(config: Option<&v1::DecoderConfig>) -> String {
    let Some(config) = config else { return String::new() };
    format!(
        "family      {}\nlayers      {}\nd_model     {}\nheads       {} ({} for keys and values)\nd_ff        \
         {}\nvocabulary  {}\npositions   {}\ntied head   {}",
        config.family().as_str_name().trim_start_matches("FAMILY_").to_lowercase(),
        config.n_layers,
        config.d_model,
        config.n_heads,
        config.n_kv_heads,
        config.d_ff,
        config.vocab_size,
        config.max_positions,
        if config.tied_head { "yes" } else { "no" },
    )
}

fn parameters(total: u64, embedding: u64, block: u64) -> String {
    format!(
        "parameters  {} ({} in blocks, {} outside)",
        numbers::count(total),
        numbers::count(block),
        numbers::count(embedding)
    )
}

fn dimensions(shape: &[u64]) -> String {
    shape.iter().map(u64::to_string).collect::<Vec<_>>().join(" x ")
}

fn inspected(reply: &v1::InspectResponse) -> String {
    let rows = reply.tensors.iter().map(|tensor| {
        let file = if tensor.tied_to.is_empty() { tensor.file.clone() } else { format!("tied to {}", tensor.tied_to) };
        vec![
            tensor.name.clone(),
            tensor.role.clone(),
            tensor.layer.map_or_else(String::new, |layer| layer.to_string()),
            dimensions(&tensor.shape),
            tensor.dtype.clone(),
            show::bytes(tensor.size_bytes),
            file,
        ]
    });
    format!(
        "{}\n{}\nsize        {}\n\n{}{}",
        shape(reply.config.as_ref()),
        parameters(reply.total_parameters, reply.embedding_parameters, reply.block_parameters),
        show::bytes(reply.size_bytes),
        show::table(&["tensor", "role?", ">layer?", ">shape", "dtype", ">size", "file?"], rows),
        left_out(&reply.left_out)
    )
}

fn planned(reply: &v1::PlanSliceResponse) -> String {
    if !reply.missing.is_empty() {
        let rows = reply.missing.iter().map(|name| vec![name.clone()]);
        return format!(
            "It cannot be sliced. The source does not have these tensors:\n\n{}",
            show::table(&["tensor"], rows)
        );
    }
    let rows = reply.tensors.iter().map(|tensor| {
        vec![
            tensor.name.clone(),
            tensor.role.clone(),
            origin(tensor),
            tensor.from.clone(),
            dimensions(&tensor.shape),
            tensor.dtype.clone(),
            show::bytes(tensor.size_bytes),
        ]
    });
    let map: Vec<String> = reply.layer_map.iter().map(u32::to_string).collect();
    let is_fresh = |tensor: &v1::PlannedTensor| tensor.origin() == v1::TensorOrigin::Fresh;
    let is_tied = |tensor: &v1::PlannedTensor| tensor.origin() == v1::TensorOrigin::Tied;
    format!(
        "{}\n{}\nlayer map   {} of the reference's {}\ncopied      {}{}\nfresh       {}{}\nfiles       {}\n\n{}{}",
        shape(reply.config.as_ref()),
        parameters(reply.total_parameters, reply.embedding_parameters, reply.block_parameters),
        map.join(", "),
        reply.reference_layers,
        show::bytes(reply.copied_bytes),
        roles(&reply.tensors, |tensor| !is_fresh(tensor) && !is_tied(tensor)),
        show::bytes(reply.fresh_bytes),
        roles(&reply.tensors, is_fresh),
        reply.weights_files,
        show::table(&["tensor", "role?", "origin", "from?", ">shape", "dtype?", ">size"], rows),
        left_out(&reply.left_out)
    )
}

/// The parts of the source that the target does not take over unchanged.
fn left_out(all: &[v1::LeftOut]) -> String {
    if all.is_empty() {
        return String::new();
    }
    let rows = all.iter().map(|left| vec![show::one_line(&left.name), left.kind.clone(), show::one_line(&left.reason)]);
    format!("\n\n{}", show::table(&["left out", "kind", "reason"], rows))
}

/// The number of tensors of a kind and their roles in the model: ` in 26 tensors: attention, norm`.
fn roles(tensors: &[v1::PlannedTensor], is_kind: impl Fn(&v1::PlannedTensor) -> bool) -> String {
    let mut roles: Vec<&str> = Vec::new();
    let mut count = 0;
    for tensor in tensors.iter().filter(|tensor| is_kind(tensor)) {
        count += 1;
        if !roles.contains(&tensor.role.as_str()) {
            roles.push(&tensor.role);
        }
    }
    match count {
        0 => String::new(),
        1 => format!(" in 1 tensor: {}", roles.join(", ")),
        _ => format!(" in {count} tensors: {}", roles.join(", ")),
    }
}

fn origin(tensor: &v1::PlannedTensor) -> String {
    tensor.origin().as_str_name().trim_start_matches("TENSOR_ORIGIN_").to_lowercase()
}

fn estimated(reply: &v1::EstimateResponse) -> String {
    let mut out = format!(
        "steps        {}\ntokens       {} ({} per step, {:.2} epochs)\nparameters   {}\nmemory       {} ({} weights, \
         gradients and moments; {} activations)\nflops        {:.3e}\nspeed        {} tokens/s\ntime         {}",
        numbers::count(reply.steps),
        numbers::count(reply.tokens),
        numbers::count(reply.tokens_per_step),
        reply.epochs,
        numbers::count(reply.parameters),
        show::bytes(reply.memory_bytes),
        show::bytes(reply.state_bytes),
        show::bytes(reply.activation_bytes),
        reply.flops,
        numbers::short(reply.tokens_per_second),
        numbers::duration(reply.seconds),
    );
    for note in &reply.notes {
        out.push_str(&format!("\n- {}", show::one_line(note)));
    }
    out
}
