//! Single-use tokens in the query of a URI.

use http::{Uri, uri::PathAndQuery};

use crate::token::Token;

/// The parameter of a query.
#[derive(Clone)]
pub(crate) enum InQuery {
    Nothing,
    /// Not a token: invalid, empty, or more than one.
    Malformed,
    Token(Token),
}

/// Removes all parameters with this name from the URI. Names and values may be percent-encoded.
pub(crate) fn take_from(uri: &mut Uri, name: &str) -> InQuery {
    let mut found = InQuery::Nothing;
    let mut rest = String::new();
    for parameter in uri.query().unwrap_or_default().split('&') {
        match form_urlencoded::parse(parameter.as_bytes()).next() {
            Some((given, value)) if given == name => {
                found = match (found, Token::parse(&*value)) {
                    (InQuery::Nothing, Ok(token)) => InQuery::Token(token),
                    _ => InQuery::Malformed,
                };
            }
            _ => {
                rest.push(if rest.is_empty() { '?' } else { '&' });
                rest.push_str(parameter);
            }
        }
    }
    if !matches!(found, InQuery::Nothing) {
        *uri = with_query(uri, &rest);
    }
    found
}

/// The URI with another query.
fn with_query(uri: &Uri, query: &str) -> Uri {
    let mut parts = uri.clone().into_parts();
    // The parts of a URI are valid together. If not, the URI without a query is used, and the token is removed too.
    let path = PathAndQuery::try_from(format!("{}{query}", uri.path()));
    parts.path_and_query = Some(path.unwrap_or(PathAndQuery::from_static("/")));
    Uri::from_parts(parts).unwrap_or_default()
}
