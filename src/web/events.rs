//! The live view's stream of server-sent events: how everything stands whenever that changes, and each
//! prediction. Whoever reads slowly misses some; nothing is kept for anybody.

use std::sync::Arc;
use std::time::Duration;

use axum::body::{Body, Bytes};
use axum::http::header::{CACHE_CONTROL, CONTENT_TYPE};
use axum::response::{IntoResponse, Response};
use futures_util::stream;
use serde::Serialize;
use tokio::sync::{OwnedSemaphorePermit, watch};
use tokio::time::{Instant, sleep_until};

use crate::classify::Seen;
use crate::event::{Prediction, json};
use crate::overview::{Overview, Point, Status};

/// How often it is looked what has changed.
const LOOK: Duration = Duration::from_secs(1);

/// How much less often what changes all the time is told.
const SELDOM: u32 = 10;

/// The shortest time from one prediction to the next.
const APART: Duration = Duration::from_millis(100);

/// A word after so long a silence shows whether anybody still listens.
const SILENCE: Duration = Duration::from_secs(15);

/// A classified frame.
#[derive(Serialize)]
struct News<'a> {
    point: Point,
    prediction: &'a Prediction,
}

struct Events {
    overview: Arc<Overview>,
    last: watch::Receiver<Option<Seen>>,
    told: Option<Status>,
    looks: u32,
    look: Instant,
    /// When the next prediction may be told.
    next: Instant,
    silent: Instant,
    _slot: OwnedSemaphorePermit,
}

/// The stream, which holds `slot` as long as somebody reads it.
pub(super) fn stream(overview: Arc<Overview>, slot: OwnedSemaphorePermit) -> Response {
    let (last, now) = (overview.last.subscribe(), Instant::now());
    let events = Events {
        overview,
        last,
        told: None,
        looks: 0,
        look: now,
        next: now,
        silent: now,
        _slot: slot,
    };
    let body = stream::unfold(events, async |mut events| {
        let event = events.next().await?;
        Some((Ok::<_, std::convert::Infallible>(event), events))
    });
    let head = [(CONTENT_TYPE, "text/event-stream"), (CACHE_CONTROL, "no-store")];
    (head, Body::from_stream(body)).into_response()
}

impl Events {
    /// The next event; nothing when the daemon ends.
    async fn next(&mut self) -> Option<Bytes> {
        let event = loop {
            tokio::select! {
                () = sleep_until(self.look) => {
                    self.look = Instant::now() + LOOK;
                    self.looks = self.looks.wrapping_add(1);
                    if let Some(status) = self.news() {
                        break event("status", &status);
                    }
                }
                () = sleep_until(self.silent + SILENCE) => break Bytes::from_static(b":\n\n"),
                changed = seen(&mut self.last, self.next) => {
                    changed?;
                    self.next = Instant::now() + APART;
                    let seen = self.last.borrow_and_update();
                    let Some(seen) = &*seen else { continue };
                    let (point, prediction) = (Point::new(seen), &*seen.prediction);
                    break event("prediction", &News { point, prediction });
                }
            }
        };
        self.silent = Instant::now();
        Some(event)
    }

    /// How everything stands, if that is worth telling.
    fn news(&mut self) -> Option<Status> {
        let status = self.overview.status();
        if let Some(told) = &self.told {
            let seldom = self.looks.is_multiple_of(SELDOM);
            let same = Status { machine: told.machine.clone(), ..status.clone() } == *told;
            if same && !(seldom && status.machine != told.machine) {
                return None;
            }
        }
        self.told = Some(status.clone());
        Some(status)
    }
}

async fn seen(last: &mut watch::Receiver<Option<Seen>>, next: Instant) -> Option<()> {
    sleep_until(next).await;
    last.changed().await.ok()
}

fn event(name: &str, data: &impl Serialize) -> Bytes {
    let mut event = format!("event: {name}\ndata: ").into_bytes();
    event.extend(json(data));
    event.extend(b"\n\n");
    event.into()
}
