//! A card for each variant, on a photo that somebody sends or on the last frame: one line of JSON for each
//! step, sent as it happens.

use std::convert::Infallible;
use std::sync::Arc;
use std::time::Duration;

use anyhow::ensure;
use axum::body::{Body, Bytes};
use axum::extract::{Query, Request, State};
use axum::http::header::{CACHE_CONTROL, CONTENT_LENGTH, CONTENT_TYPE};
use axum::http::{HeaderMap, StatusCode};
use axum::response::{IntoResponse, Response};
use futures_util::{StreamExt, stream};
use serde::Deserialize;
use serde_json::{Value, json};
use tokio::sync::mpsc;
use tokio::task::spawn_blocking;
use tokio::time::timeout;

use super::{Refusal, UPLOADS, Web};
use crate::compare::{Comparing, Step, Taken, compare};
use crate::event;
use crate::overview::Overview;
use crate::pipeline::{ClassifyError, Pipeline};
use crate::source::Picture;

/// Within this a photo must have come.
const UPLOAD_WITHIN: Duration = Duration::from_secs(60);

/// So much of a photo that is too large is still read, so that its sender hears why it is refused.
const DRAINED: usize = 256 << 20;

/// Steps that may wait for a slow reader.
const STEPS: usize = 64;

/// What may be asked for.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Wanted {
    /// `last` for the last frame instead of a photo.
    frame: Option<String>,
    /// Inferences of each variant.
    #[serde(default = "three")]
    runs: u32,
}

fn three() -> u32 {
    3
}

/// Runs every variant and streams what they say.
pub(super) async fn cards(
    State(web): State<Arc<Web>>,
    Query(wanted): Query<Wanted>,
    request: Request,
) -> Result<Response, Refusal> {
    let overview = &web.overview;
    if !(1..=20).contains(&wanted.runs) {
        return Err(Refusal::new(StatusCode::BAD_REQUEST, "runs must be from 1 to 20"));
    }
    let picture = match wanted.frame.as_deref() {
        None => Picture::Encoded(receive(&web, request).await?),
        Some("last") => {
            let seen = overview.last.borrow();
            let seen = seen.as_ref().ok_or_else(Refusal::no_frame)?;
            Picture::clone(&seen.picture)
        }
        Some(_) => return Err(Refusal::new(StatusCode::BAD_REQUEST, "frame can only be 'last'")),
    };
    // Only now, so that nobody who sends slowly holds up the others.
    let turn = overview.turn.take().ok_or_else(busy)?;
    let pipeline = Pipeline::new(&overview.config.source);
    let decoding = spawn_blocking(move || {
        let mut picture = picture;
        pipeline.decode(&mut picture).map(|_| picture)
    });
    let decoded = decoding.await.map_err(Refusal::failed)?;
    let picture = decoded.map_err(|error: ClassifyError| {
        Refusal::new(StatusCode::UNSUPPORTED_MEDIA_TYPE, format!("the photo {error}"))
    })?;
    Ok(stream(overview.clone(), turn, picture, wanted.runs))
}

/// A photo, whole, within limits. What is not wanted is read all the same: whoever is still sending would
/// not hear why it is refused.
async fn receive(web: &Web, request: Request) -> Result<Vec<u8>, Refusal> {
    let most = web.overview.config.web.max_upload();
    let (mut photo, mut slot, mut refusal) = (Vec::new(), None, None);
    if length(request.headers()).is_some_and(|length| length > most) {
        refusal = Some(too_large(&web.overview));
    } else {
        slot = web.uploads.try_acquire().ok();
        if slot.is_none() {
            let problem = format!("{UPLOADS} photos are on their way already, try again later");
            refusal = Some(Refusal::new(StatusCode::SERVICE_UNAVAILABLE, problem));
        }
    }
    let mut chunks = request.into_body().into_data_stream();
    let mut read = 0;
    let reading = async {
        while let Some(chunk) = chunks.next().await {
            let chunk = chunk.map_err(|error| {
                Refusal::new(StatusCode::BAD_REQUEST, format!("the photo is cut: {error}"))
            })?;
            read += chunk.len();
            if read > most && refusal.is_none() {
                (photo, slot, refusal) = (Vec::new(), None, Some(too_large(&web.overview)));
            }
            match refusal {
                None => photo.extend_from_slice(&chunk),
                Some(_) if read > DRAINED => break,
                Some(_) => {}
            }
        }
        Ok(())
    };
    let came = timeout(UPLOAD_WITHIN, reading).await;
    drop(slot);
    if let Some(refusal) = refusal {
        return Err(refusal);
    }
    came.map_err(|_| {
        let problem = format!("the photo did not come within {} s", UPLOAD_WITHIN.as_secs());
        Refusal::new(StatusCode::REQUEST_TIMEOUT, problem)
    })??;
    if photo.is_empty() {
        let problem = "send a photo, or ask for frame=last";
        return Err(Refusal::new(StatusCode::BAD_REQUEST, problem));
    }
    Ok(photo)
}

fn busy() -> Refusal {
    Refusal::new(StatusCode::CONFLICT, "a comparison is under way, try again later")
}

fn length(headers: &HeaderMap) -> Option<usize> {
    headers.get(CONTENT_LENGTH)?.to_str().ok()?.parse().ok()
}

fn too_large(overview: &Overview) -> Refusal {
    let most = overview.config.web.max_upload_mb;
    let problem = format!("the photo is larger than web.max_upload_mb = {most} MB");
    Refusal::new(StatusCode::PAYLOAD_TOO_LARGE, problem)
}

/// The comparison goes on until nobody reads any more.
fn stream(overview: Arc<Overview>, turn: Taken, picture: Picture, runs: u32) -> Response {
    let (steps, told) = mpsc::channel(STEPS);
    spawn_blocking(move || {
        let tell = |value: &Value| {
            let mut line = event::json(value);
            line.push(b'\n');
            steps.blocking_send(Bytes::from(line))
        };
        let Overview { config, lineup, .. } = &*overview;
        let set = &*lineup.set();
        let start = json!({"start": {"variants": set.names(), "runs": runs}});
        if tell(&start).is_err() {
            return;
        }
        let (picture, may) = (&picture, &|index: usize| lineup.room(&set.manifest.variants[index]));
        let comparing = Comparing { config, set, picture, runs, background: true, may };
        let compared = compare(comparing, |step| {
            let heard = match step {
                Step::Next(name) => tell(&json!({"next": name})).is_ok(),
                Step::LeftOut(left_out) => tell(&json!({"left_out": left_out})).is_ok(),
                Step::Card(card) => tell(&json!({"card": card})).is_ok(),
                Step::Ran(_) => !steps.is_closed(),
            };
            ensure!(heard, "nobody reads any more");
            Ok(())
        });
        // Before the last line, after which the next comparison may be asked for.
        drop(turn);
        let end = match compared {
            Ok(()) => json!({"done": {}}),
            Err(error) => json!({"error": format!("{error:#}")}),
        };
        tell(&end).ok();
    });
    let lines = stream::unfold(told, async |mut told| {
        let line: Bytes = told.recv().await?;
        Some((Ok::<_, Infallible>(line), told))
    });
    let head = [(CONTENT_TYPE, "application/x-ndjson"), (CACHE_CONTROL, "no-store")];
    (head, Body::from_stream(lines)).into_response()
}
