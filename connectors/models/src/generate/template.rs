//! From a conversation to the text that the model was trained to continue.
//!
//! Renders the template that the model's file carries, as the libraries of its authors do: Jinja with Python's methods and
//! its spelling of JSON, blocks taking no lines of their own. Leaves tokens to `vocabulary.rs`.

use minijinja::value::Value as Jinja;
use minijinja::{Environment, Error, ErrorKind, context};
use serde_json::Value;

use super::gguf::Gguf;
use crate::error::ModelError;

const NAME: &str = "chat";

/// The chat template of one model.
#[derive(Debug)]
pub(super) struct Template {
    environment: Environment<'static>,
    tools: bool,
    begin: String,
    end: String,
}

impl Template {
    /// Reads the template of a file.
    pub(super) fn read(gguf: &Gguf) -> Result<Self, ModelError> {
        let source = gguf.text("tokenizer.chat_template")?;
        let tokens = gguf.texts("tokenizer.ggml.tokens")?;
        let token = |key: &str| {
            let id = gguf.size_if(key);
            id.and_then(|id| tokens.get(id))
                .cloned()
                .unwrap_or_default()
        };
        Self::new(
            source,
            token("tokenizer.ggml.bos_token_id"),
            token("tokenizer.ggml.eos_token_id"),
        )
    }

    fn new(source: &str, begin: String, end: String) -> Result<Self, ModelError> {
        let mut environment = Environment::new();
        environment.set_trim_blocks(true);
        environment.set_lstrip_blocks(true);
        environment
            .set_unknown_method_callback(minijinja_contrib::pycompat::unknown_method_callback);
        environment.add_filter("tojson", tojson);
        environment.add_function("raise_exception", refuse);
        environment
            .add_template_owned(NAME, source.to_owned())
            .map_err(|error| ModelError::Format(format!("chat template: {error}")))?;
        Ok(Self {
            environment,
            // The one form of calls that `calls.rs` understands.
            tools: source.contains("tools") && source.contains("<tool_call>"),
            begin,
            end,
        })
    }

    /// Whether it tells the model of functions.
    pub(super) fn has_tools(&self) -> bool {
        self.tools
    }

    /// The prompt: the conversation, and the beginning of the reply.
    pub(super) fn render(&self, messages: &[Value], tools: &[Value]) -> Result<String, ModelError> {
        let fail = |error: Error| {
            // A template that refuses a conversation says why in its cause.
            let cause = std::error::Error::source(&error).map(|cause| format!(": {cause}"));
            ModelError::Input(format!(
                "the model's chat template refuses this conversation: {error}{}",
                cause.unwrap_or_default()
            ))
        };
        let template = self.environment.get_template(NAME).map_err(fail)?;
        let tools = (!tools.is_empty()).then(|| Jinja::from_serialize(tools));
        template
            .render(context! {
                messages => Jinja::from_serialize(messages),
                tools => tools,
                add_generation_prompt => true,
                bos_token => self.begin,
                eos_token => self.end,
            })
            .map_err(fail)
    }
}

fn tojson(value: Jinja) -> Result<String, Error> {
    let value = serde_json::to_value(&value)
        .map_err(|error| Error::new(ErrorKind::BadSerialization, error.to_string()))?;
    let mut out = String::new();
    write(&value, &mut out);
    Ok(out)
}

fn refuse(reason: String) -> Result<String, Error> {
    Err(Error::new(ErrorKind::InvalidOperation, reason))
}

/// JSON with Python's spaces, which the models have seen in training.
fn write(value: &Value, out: &mut String) {
    match value {
        Value::Object(fields) => {
            out.push('{');
            for (i, (name, value)) in fields.iter().enumerate() {
                if i > 0 {
                    out.push_str(", ");
                }
                out.push_str(&Value::from(name.as_str()).to_string());
                out.push_str(": ");
                write(value, out);
            }
            out.push('}');
        }
        Value::Array(items) => {
            out.push('[');
            for (i, item) in items.iter().enumerate() {
                if i > 0 {
                    out.push_str(", ");
                }
                write(item, out);
            }
            out.push(']');
        }
        other => out.push_str(&other.to_string()),
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn template(source: &str) -> Template {
        Template::new(source, "<s>".to_owned(), "</s>".to_owned()).unwrap()
    }

    #[test]
    fn a_conversation_is_rendered_as_python_would() {
        let source = "{{ bos_token }}{%- for message in messages %}\n    {%- if message.role == 'user' %}\n{{ \
                      message['content'].strip() + '\n' }}\n    {%- endif %}\n{%- endfor %}\n{% if tools %}\n\
                      {% for tool in tools %}\n{{ tool | tojson }}\n{% endfor %}\n{% endif %}\n\
                      {% if add_generation_prompt %}<tool_call>{% endif %}";
        let template = template(source);
        assert!(template.has_tools());
        let messages = [json!({"role": "user", "content": " 你好 <b> "})];
        let tools = [json!({"name": "find", "limits": [1, 2.5, null], "text": "\"é\""})];
        assert_eq!(
            template.render(&messages, &tools).unwrap(),
            "<s>你好 <b>\n{\"name\": \"find\", \"limits\": [1, 2.5, null], \"text\": \"\\\"é\\\"\"}\n<tool_call>"
        );
        assert_eq!(
            template.render(&messages, &[]).unwrap(),
            "<s>你好 <b>\n<tool_call>"
        );
    }

    #[test]
    fn a_template_may_refuse() {
        let template = template("{{ raise_exception('roles must alternate') }}");
        assert!(!template.has_tools());
        let error = template.render(&[], &[]).unwrap_err().to_string();
        assert!(error.contains("roles must alternate"), "{error}");
    }
}
