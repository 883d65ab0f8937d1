use crate::builder::Builder;
use crate::error::ParseError;
pub(crate) fn parse(_bytes: &[u8], _builder: &mut Builder) -> Result<(), ParseError> { Ok(()) }
