//! Who may come in: visitors who know the token, if there is one, and no page of another site.

use std::net::SocketAddr;

use axum::extract::{Request, State};
use axum::http::header::{AUTHORIZATION, HOST, HeaderName, ORIGIN, WWW_AUTHENTICATE};
use axum::http::uri::Authority;
use axum::http::{HeaderMap, HeaderValue, Method, StatusCode};
use axum::middleware::Next;
use axum::response::{IntoResponse, Response};
use base64::Engine;
use base64::prelude::BASE64_STANDARD;
use std::sync::Arc;
use std::time::Duration;
use tokio::time::sleep;

use super::Refusal;
use crate::config::{Config, ConfigError};
use crate::secret;

/// What systemd calls the token.
pub(super) const CREDENTIAL: &str = "web-token";

/// How long a token may be, and how short: nobody should guess it.
const LENGTHS: std::ops::RangeInclusive<usize> = 16..=1024;

/// How long a visitor with a wrong token waits for the answer.
const PENALTY: Duration = Duration::from_millis(500);

/// Says whether requests come from where they may.
#[derive(Clone, Debug)]
pub(super) struct Guard {
    token: Option<Vec<u8>>,
}

impl Guard {
    /// For a page at `address`.
    ///
    /// # Errors
    /// [`ConfigError`] when the token cannot be read, or is needed and not there.
    pub(super) fn new(config: &Config, address: SocketAddr) -> Result<Self, ConfigError> {
        let file = &config.web.token_file;
        let token = secret::read(config, "web.token_file", file, CREDENTIAL, LENGTHS)?;
        if token.is_none() && !address.ip().is_loopback() {
            let problem = "other machines reach this address: give a web.token_file, or to the \
                           service /etc/credstore/vggd.web-token, which only root sees, or listen \
                           on 127.0.0.1";
            return Err(config.wrong("web.listen", address, problem));
        }
        Ok(Self { token })
    }

    /// Whether a token is asked for.
    pub(super) fn asks(&self) -> bool {
        self.token.is_some()
    }

    fn knows(&self, headers: &HeaderMap) -> bool {
        let Some(token) = &self.token else { return true };
        let given = headers.get(AUTHORIZATION).and_then(|value| value.to_str().ok());
        let Some((scheme, value)) = given.and_then(|given| given.split_once(' ')) else {
            return false;
        };
        let value = value.trim();
        if scheme.eq_ignore_ascii_case("bearer") {
            return equal(value.as_bytes(), token);
        }
        let login = match scheme.eq_ignore_ascii_case("basic") {
            true => BASE64_STANDARD.decode(value).unwrap_or_default(),
            false => return false,
        };
        let password = login.splitn(2, |&byte| byte == b':').nth(1);
        password.is_some_and(|password| equal(password, token))
    }
}

/// Compares in a time that does not tell how much of it is right.
fn equal(given: &[u8], token: &[u8]) -> bool {
    let differ = given.iter().zip(token).fold(0, |differ, (a, b)| differ | (a ^ b));
    given.len() == token.len() && differ == 0
}

/// Lets through what may come in.
pub(super) async fn check(
    State(guard): State<Arc<Guard>>,
    request: Request,
    next: Next,
) -> Response {
    let headers = request.headers();
    // Whoever only asks whether it lives needs no token.
    let open = ["/healthz", "/readyz"].contains(&request.uri().path());
    if !open && !guard.knows(headers) {
        if headers.contains_key(AUTHORIZATION) {
            sleep(PENALTY).await;
        }
        let mut response =
            Refusal::new(StatusCode::UNAUTHORIZED, "the token in web.token_file is needed")
                .into_response();
        let realm = HeaderValue::from_static("Basic realm=\"vggd\", charset=\"UTF-8\"");
        response.headers_mut().insert(WWW_AUTHENTICATE, realm);
        return response;
    }
    // Without a token, a name that leads here must not let a stranger's page in (DNS rebinding).
    if !guard.asks() && !headers.get(HOST).is_none_or(is_local) {
        let problem = "without a web.token_file this page answers to localhost only";
        return Refusal::new(StatusCode::FORBIDDEN, problem).into_response();
    }
    // They may have links that lead here, and no more: neither orders, nor pictures, nor streams.
    let looks = [Method::GET, Method::HEAD].contains(request.method());
    if is_foreign(headers) && !(looks && is_visit(headers)) {
        let problem = "pages of other sites get nothing here, and change nothing";
        return Refusal::new(StatusCode::FORBIDDEN, problem).into_response();
    }
    next.run(request).await
}

fn is_local(host: &HeaderValue) -> bool {
    let authority = host.to_str().ok().and_then(|host| host.parse::<Authority>().ok());
    authority.is_some_and(|authority| {
        let name = authority.host().trim_start_matches('[').trim_end_matches(']');
        let address = name.parse::<std::net::IpAddr>();
        name.eq_ignore_ascii_case("localhost") || address.is_ok_and(|address| address.is_loopback())
    })
}

/// Whether a browser goes to what it asks for, and shows it to somebody.
fn is_visit(headers: &HeaderMap) -> bool {
    let value = |name| headers.get(HeaderName::from_static(name));
    let framed = value("sec-fetch-dest").is_some_and(|to| to != "document");
    !framed && value("sec-fetch-mode").is_some_and(|mode| mode == "navigate")
}

/// Whether a browser says that another site's page sent this.
fn is_foreign(headers: &HeaderMap) -> bool {
    let site = headers.get(HeaderName::from_static("sec-fetch-site"));
    if let Some(site) = site {
        return site != "same-origin" && site != "none";
    }
    let Some(origin) = headers.get(ORIGIN) else { return false };
    let own = headers.get(HOST).and_then(|host| host.to_str().ok()).unwrap_or_default();
    let from = origin.to_str().ok().and_then(|origin| Some(origin.split_once("://")?.1));
    from != Some(own)
}
