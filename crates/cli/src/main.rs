//! `inheritune`: see [`inheritune_cli`].

#[tokio::main]
async fn main() -> std::process::ExitCode {
    inheritune_cli::main().await
}
