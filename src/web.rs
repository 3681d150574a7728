//! The page: what vggd does at the moment, every variant's answer for a photo, and the same for programs and
//! Prometheus. The only user of axum and hyper. `config/api.md` documents what can be asked.
//!
//! Nothing here can hold up a frame: it runs on the main thread and in threads of its own, with a bound on
//! connections, streams and what they may keep in memory. A comparison runs in processes to which
//! everything else goes first.

mod cards;
mod events;
mod guard;
mod health;
mod page;

use std::io;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use axum::Router;
use axum::body::{Bytes, to_bytes};
use axum::extract::{Path, Request, State};
use axum::http::header::{CACHE_CONTROL, CONTENT_TYPE, HeaderName, HeaderValue};
use axum::http::{Method, StatusCode, Uri};
use axum::middleware;
use axum::response::{IntoResponse, Response};
use axum::routing::{get, post, put};
use hyper::server::conn::http1;
use hyper_util::rt::{TokioIo, TokioTimer};
use hyper_util::service::TowerToHyperService;
use serde::Serialize;
use serde_json::json;
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{Semaphore, mpsc, oneshot};
use tokio::task::spawn_blocking;
use tokio::time::{sleep, timeout};

use self::guard::Guard;
use crate::config::{Config, ConfigError};
use crate::control::Asked;
use crate::event::{self, milliseconds};
use crate::overview::Overview;
use crate::pipeline::Pipeline;
use crate::secret;
use crate::service::STUCK_AFTER;

/// Connections at once; more wait.
const CONNECTIONS: usize = 64;

/// Event streams at once.
const STREAMS: usize = 16;

/// Photos that may be on their way at once, each of which is kept in memory.
const UPLOADS: usize = 4;

/// The longest order, in bytes, and within which time it must come.
const ORDER: (usize, Duration) = (1024, Duration::from_secs(10));

/// A visitor must say what it wants within this, and take what it is sent.
const PATIENCE: Duration = Duration::from_secs(20);

/// How long an order may take, loading a model among them.
const OBEYED_WITHIN: Duration = Duration::from_secs(120);

/// How soon an address that is in use is tried again.
const AGAIN: Duration = Duration::from_secs(30);

/// The page with everything that it needs.
pub struct Web {
    overview: Arc<Overview>,
    orders: mpsc::Sender<Asked>,
    guard: Arc<Guard>,
    streams: Arc<Semaphore>,
    uploads: Semaphore,
    /// The last frame that somebody wanted to see, by its id.
    frame: Mutex<Option<(String, Bytes)>>,
}

/// Looks at everything that the page needs, the network excepted.
///
/// # Errors
/// [`ConfigError`] that names the key.
pub fn check(config: &Config) -> Result<(), ConfigError> {
    match config.web.listen() {
        Some(address) => Guard::new(config, address).map(drop),
        None => Ok(()),
    }
}

/// The token that the service will ask for, where [`check`] cannot know it: the file that systemd hands over.
pub fn stored_token(config: &Config) -> Option<PathBuf> {
    let unknown = config.web.listen().is_some() && config.web.token_file.as_os_str().is_empty();
    unknown.then(|| secret::stored(guard::CREDENTIAL)).flatten()
}

/// Serves the page, if it is not off, until it is dropped. What is ordered goes to `orders`.
///
/// # Errors
/// [`ConfigError`], at once.
pub fn serve(
    overview: Arc<Overview>,
    orders: mpsc::Sender<Asked>,
) -> Result<impl Future<Output = ()> + Send + use<>, ConfigError> {
    let config = &overview.config;
    let address = config.web.listen();
    let guard = address.map(|address| Guard::new(config, address)).transpose()?;
    Ok(async move {
        let Some((address, guard)) = address.zip(guard) else { return };
        let token = guard.asks();
        let listener = listen(address).await;
        let at = listener.local_addr().unwrap_or(address);
        tracing::info!(page = format!("http://{at}/"), token, "the page is there");
        let web = Web {
            overview,
            orders,
            guard: Arc::new(guard),
            streams: Arc::new(Semaphore::new(STREAMS)),
            uploads: Semaphore::new(UPLOADS),
            frame: Mutex::default(),
        };
        accept(listener, web.router()).await;
    })
}

/// A socket at `address`, as soon as nobody else has it.
async fn listen(address: SocketAddr) -> TcpListener {
    let mut told = false;
    loop {
        match TcpListener::bind(address).await {
            Ok(listener) => return listener,
            Err(error) => {
                if !std::mem::replace(&mut told, true) {
                    let problem = "the page waits for its address; web.listen sets another one";
                    tracing::error!(%address, %error, problem);
                }
                sleep(AGAIN).await;
            }
        }
    }
}

async fn accept(listener: TcpListener, router: Router) {
    let slots = Arc::new(Semaphore::new(CONNECTIONS));
    loop {
        let Ok(slot) = slots.clone().acquire_owned().await else { return };
        let stream = match listener.accept().await {
            Ok((stream, _)) => stream,
            Err(error) => {
                // Out of file handles, or a visitor who left.
                tracing::debug!(%error, "no connection");
                sleep(Duration::from_millis(100)).await;
                continue;
            }
        };
        let service = TowerToHyperService::new(router.clone());
        tokio::spawn(async move {
            let _slot = slot;
            if let Err(error) = limit(&stream) {
                tracing::debug!(%error, "cannot bound how long a visitor takes");
            }
            let connection = http1::Builder::new()
                .timer(TokioTimer::new())
                .header_read_timeout(PATIENCE)
                .max_buf_size(64 << 10)
                .serve_connection(TokioIo::new(stream), service);
            if let Err(error) = connection.await {
                tracing::debug!(%error, "connection ended");
            }
        });
    }
}

/// Ends the connection of a visitor who takes nothing of what is sent.
fn limit(stream: &TcpStream) -> io::Result<()> {
    stream.set_nodelay(true)?;
    let patience = PATIENCE.as_millis() as u32;
    Ok(rustix::net::sockopt::set_tcp_user_timeout(stream, patience)?)
}

impl Web {
    fn router(self) -> Router {
        let guard = self.guard.clone();
        let api = Router::new()
            .route("/status", get(status))
            .route("/history", get(history))
            .route("/events", get(live))
            .route("/frame", get(frame))
            .route("/compare", post(cards::cards))
            .route("/snapshot", post(snapshot))
            .route("/{order}", put(order));
        Router::new()
            .nest("/api/v1", api)
            .route("/healthz", get(healthz))
            .route("/readyz", get(readyz))
            .route("/metrics", get(metrics))
            .with_state(Arc::new(self))
            .merge(page::routes())
            .fallback(async |uri: Uri| nothing(uri.path()))
            .method_not_allowed_fallback(async |method: Method, uri: Uri| {
                let problem = format!("{} does not take {method}", uri.path());
                Refusal::new(StatusCode::METHOD_NOT_ALLOWED, problem)
            })
            .layer(middleware::from_fn_with_state(guard, guard::check))
            .layer(middleware::map_response(harden))
    }
}

/// JSON that holds at this moment only.
fn answer(value: &impl Serialize) -> Response {
    let head = [(CONTENT_TYPE, "application/json"), (CACHE_CONTROL, "no-store")];
    (head, event::json(value)).into_response()
}

async fn status(State(web): State<Arc<Web>>) -> Response {
    answer(&web.overview.status())
}

async fn history(State(web): State<Arc<Web>>) -> Response {
    answer(&json!({"points": web.overview.history.points()}))
}

async fn live(State(web): State<Arc<Web>>) -> Result<Response, Refusal> {
    let slot = web.streams.clone().try_acquire_owned().map_err(|_| {
        let problem = format!("{STREAMS} streams are open already, close one");
        Refusal::new(StatusCode::SERVICE_UNAVAILABLE, problem)
    })?;
    Ok(events::stream(web.overview.clone(), slot))
}

async fn metrics(State(web): State<Arc<Web>>) -> Response {
    let kind = "application/openmetrics-text; version=1.0.0; charset=utf-8";
    ([(CONTENT_TYPE, kind)], web.overview.metrics()).into_response()
}

async fn healthz(State(web): State<Arc<Web>>) -> (StatusCode, String) {
    told(health::health(web.overview.stuck(STUCK_AFTER)))
}

async fn readyz(State(web): State<Arc<Web>>) -> (StatusCode, String) {
    let overview = &web.overview;
    let (stuck, paused) = (overview.stuck(STUCK_AFTER), overview.gate.paused());
    told(health::readiness(stuck, &overview.board.message().source, paused))
}

/// Words for who only looks at the status.
fn told(verdict: Result<(), String>) -> (StatusCode, String) {
    match verdict {
        Ok(()) => (StatusCode::OK, "ok\n".to_owned()),
        Err(problem) => (StatusCode::SERVICE_UNAVAILABLE, problem + "\n"),
    }
}

/// The last frame, as a JPEG. It is made once for all who want to see it.
async fn frame(State(web): State<Arc<Web>>) -> Result<Response, Refusal> {
    let config = &web.overview.config;
    if !config.web.frame {
        let problem = "frames are not shown; web.frame = true would show them";
        return Err(Refusal::new(StatusCode::FORBIDDEN, problem));
    }
    let seen = web.overview.last.borrow().clone().ok_or_else(Refusal::no_frame)?;
    let (pipeline, most) = (Pipeline::new(&config.source), config.state.image_bytes());
    let jpeg = spawn_blocking(move || {
        let mut made = web.frame.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some((_, jpeg)) = made.as_ref().filter(|(id, _)| *id == seen.prediction.id) {
            return Some(jpeg.clone());
        }
        let jpeg = Bytes::from(pipeline.to_jpeg(&seen.picture, most)?);
        *made = Some((seen.prediction.id.clone(), jpeg.clone()));
        Some(jpeg)
    });
    let jpeg = jpeg.await.map_err(Refusal::failed)?;
    let jpeg = jpeg.ok_or_else(|| Refusal::failed("the frame cannot be shown"))?;
    Ok(([(CONTENT_TYPE, "image/jpeg"), (CACHE_CONTROL, "no-store")], jpeg).into_response())
}

async fn snapshot(State(web): State<Arc<Web>>) -> Result<Response, Refusal> {
    web.obey("snapshot", Vec::new()).await?;
    Ok((StatusCode::ACCEPTED, answer(&json!({}))).into_response())
}

/// Sets what can be set over MQTT, by the same words.
async fn order(
    State(web): State<Arc<Web>>,
    Path(name): Path<String>,
    request: Request,
) -> Result<Response, Refusal> {
    if !["variant", "budget", "pause"].contains(&name.as_str()) {
        return Err(nothing(&format!("/api/v1/{name}")));
    }
    let (most, patience) = ORDER;
    let payload = timeout(patience, to_bytes(request.into_body(), most)).await;
    let wrong = |problem| Refusal::new(StatusCode::BAD_REQUEST, problem);
    let payload = payload.map_err(|_| wrong("the order did not come"))?;
    let payload = payload.map_err(|_| wrong("the order is too long, or cut"))?;
    web.obey(&name, payload.into()).await?;
    let now = web.overview.orders();
    Ok(answer(&json!({
        "variant": now.variant.word(),
        "budget_ms": now.budget.map(milliseconds),
        "paused": now.paused,
    })))
}

impl Web {
    /// Hands on an order, and waits for what becomes of it.
    async fn obey(&self, name: &str, payload: Vec<u8>) -> Result<(), Refusal> {
        let busy =
            || Refusal::new(StatusCode::SERVICE_UNAVAILABLE, "too many orders, try again later");
        let (tell, told) = oneshot::channel();
        let answer = move |outcome| drop(tell.send(outcome));
        let asked = Asked::answered(name.to_owned(), payload, answer);
        self.orders.try_send(asked).map_err(|_| busy())?;
        let outcome = timeout(OBEYED_WITHIN, told).await.ok().and_then(Result::ok);
        outcome.ok_or_else(busy)?.map_err(|problem| Refusal::new(StatusCode::BAD_REQUEST, problem))
    }
}

/// What a browser must not do with what it is given.
async fn harden(mut response: Response) -> Response {
    let headers = response.headers_mut();
    for (name, value) in [
        (
            "content-security-policy",
            "default-src 'self'; img-src 'self' blob:; base-uri 'none'; form-action 'none'; \
             frame-ancestors 'none'",
        ),
        ("cross-origin-resource-policy", "same-origin"),
        ("cross-origin-opener-policy", "same-origin"),
        ("x-content-type-options", "nosniff"),
        ("referrer-policy", "no-referrer"),
    ] {
        headers.insert(HeaderName::from_static(name), HeaderValue::from_static(value));
    }
    response
}

fn nothing(path: &str) -> Refusal {
    Refusal::new(StatusCode::NOT_FOUND, format!("there is nothing at {path}"))
}

/// Why a visitor does not get what it asked for.
#[derive(Debug)]
struct Refusal {
    status: StatusCode,
    problem: String,
}

impl Refusal {
    fn new(status: StatusCode, problem: impl Into<String>) -> Self {
        Self { status, problem: problem.into() }
    }

    fn no_frame() -> Self {
        Self::new(StatusCode::NOT_FOUND, "no frame was classified so far")
    }

    fn failed(error: impl std::fmt::Display) -> Self {
        Self::new(StatusCode::INTERNAL_SERVER_ERROR, error.to_string())
    }
}

impl IntoResponse for Refusal {
    fn into_response(self) -> Response {
        (self.status, answer(&json!({"error": self.problem}))).into_response()
    }
}
