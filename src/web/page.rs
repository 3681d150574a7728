//! The page itself: files that are compiled in.

use axum::Router;
use axum::http::header::{CACHE_CONTROL, CONTENT_TYPE, ETAG, IF_NONE_MATCH};
use axum::http::{HeaderMap, StatusCode};
use axum::response::{IntoResponse, Response};
use axum::routing::get;

macro_rules! files {
    ($($path:literal $file:literal $kind:literal,)*) => {
        [$(File { path: $path, content: include_bytes!(concat!("page/", $file)), kind: $kind }),*]
    };
}

#[derive(Clone, Copy)]
struct File {
    path: &'static str,
    content: &'static [u8],
    kind: &'static str,
}

/// Every file, with the path that it is served at.
const FILES: [File; 12] = files! {
    "/" "index.html" "text/html; charset=utf-8",
    "/app.css" "app.css" "text/css; charset=utf-8",
    "/icon.svg" "icon.svg" "image/svg+xml",
    "/app.js" "app.js" "text/javascript; charset=utf-8",
    "/chart.js" "chart.js" "text/javascript; charset=utf-8",
    "/choice.js" "choice.js" "text/javascript; charset=utf-8",
    "/compare.js" "compare.js" "text/javascript; charset=utf-8",
    "/draw.js" "draw.js" "text/javascript; charset=utf-8",
    "/live.js" "live.js" "text/javascript; charset=utf-8",
    "/parts.js" "parts.js" "text/javascript; charset=utf-8",
    "/stream.js" "stream.js" "text/javascript; charset=utf-8",
    "/variants.js" "variants.js" "text/javascript; charset=utf-8",
};

/// Serves them. Browsers ask each time whether they have changed.
pub(super) fn routes<S: Clone + Send + Sync + 'static>() -> Router<S> {
    FILES.into_iter().fold(Router::new(), |router, file| {
        router.route(file.path, get(async move |headers: HeaderMap| send(file, &headers)))
    })
}

fn send(File { content, kind, .. }: File, headers: &HeaderMap) -> Response {
    let tag = format!("\"{:08x}\"", crc32fast::hash(content));
    let cache = [(ETAG, tag.clone()), (CACHE_CONTROL, "no-cache".to_owned())];
    if headers.get(IF_NONE_MATCH).is_some_and(|known| known == tag.as_str()) {
        return (StatusCode::NOT_MODIFIED, cache).into_response();
    }
    (cache, [(CONTENT_TYPE, kind)], content).into_response()
}
