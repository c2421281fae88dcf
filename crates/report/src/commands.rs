//! Commands that a reader of a report may want to run next.

use inheritune_domain::artifact::Location;

use crate::view::View;

/// A suggested next command.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Command {
    /// Purpose of the command.
    pub purpose: &'static str,
    /// Code to paste into a shell or a file.
    pub code: String,
}

impl View<'_> {
    /// Suggested next commands.
    pub fn commands(&self) -> Vec<Command> {
        let mut commands = Vec::new();
        if let Some(Location::Artifact(id)) =
            self.winner().and_then(|row| self.data.run.record(row.model)).and_then(|record| record.checkpoint.clone())
        {
            commands.push(Command {
                purpose: "Export the target as a Hugging Face checkpoint",
                code: format!("inheritune artifact export {id} --to target"),
            });
            commands.push(Command {
                purpose: "Load it in transformers and generate text",
                code: "python3 -c \"\nfrom transformers import AutoModelForCausalLM, AutoTokenizer\ntokenizer = \
                       AutoTokenizer.from_pretrained('target')\nmodel = \
                       AutoModelForCausalLM.from_pretrained('target')\nprompt = tokenizer('Once upon a time', \
                       return_tensors='pt')\nprint(tokenizer.decode(model.generate(**prompt, max_new_tokens=60, \
                       do_sample=True)[0]))\""
                    .to_owned(),
            });
            commands.push(Command {
                purpose: "Measure it on another text (perplexity.toml)",
                code: format!(
                    "cat > perplexity.toml <<'END'\nkind = \"evaluate\"\ncheckpoint = \"artifact://{id}\"\nbatch_size = \
                     8\n[[tasks]]\ntask = \"rolling_perplexity\"\nsource = \"file:other.txt\"\nEND\ninheritune job submit \
                     perplexity.toml"
                ),
            });
            commands.push(Command {
                purpose: "Use it as the reference of another recipe",
                code: format!("[reference]\ncheckpoint = \"artifact://{id}\""),
            });
        }
        commands.push(Command {
            purpose: "Show the run and write its report again",
            code: format!("inheritune run get {0}\ninheritune run report {0} --output-dir report", self.data.id),
        });
        commands
    }
}
