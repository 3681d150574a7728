//! MQTT: the only user of rumqttc.
//!
//! Reports go out at QoS 1 in the order in which they come in, and each is kept until the broker
//! has acknowledged it; only then does its photo leave the folder. A connection that fails is
//! thrown away whole and built anew after a pause, and everything unacknowledged is sent again, in
//! order. While there is no connection no reports are taken in, so that photos wait in the folder.
//!
//! Orders come in on `TOPIC/<name>/set`, and are handed on as they are; what holds goes out on retained
//! topics.

pub mod connection;

use std::collections::VecDeque;
use std::future::Future;
use std::pin::Pin;
use std::sync::Arc;
use std::time::{Duration, Instant};

use rumqttc::{
    AsyncClient, ConnectionError, Event, EventLoop, LastWill, MqttOptions, Packet, PublishOptions,
    QoS,
};
use serde::Serialize;
use tokio::sync::{mpsc, watch};
use tokio::time::{sleep, timeout, timeout_at};

use self::connection::Trouble;
use crate::config::{Config, ConfigError};
use crate::control::State;
use crate::event::{Failure, Prediction};
use crate::source::directory::Directory;
use crate::source::{Frame, Source};
use crate::stats;

/// Reports that may be on their way to the broker at once.
const UNACKNOWLEDGED: usize = 16;

/// A broker that acknowledges nothing for this long is as good as gone.
const ACKNOWLEDGE_WITHIN: Duration = Duration::from_secs(20);

/// How long a stop waits for the last acknowledgements.
const GRACE: Duration = Duration::from_secs(5);

/// The largest packets that come in and go out, in bytes.
const SMALL: usize = 10 << 10;
const LARGE: usize = 1 << 20;

/// The pause before the first new attempt, and the longest one.
const PAUSE: (Duration, Duration) = (Duration::from_millis(250), Duration::from_secs(30));

/// Something to tell, and what hangs on its being heard.
#[derive(Debug)]
pub enum Report {
    /// A photo was classified; when this is acknowledged it is done.
    Predicted(Frame, Prediction),
    /// A photo cannot be classified; when this is acknowledged it goes to `failed/`.
    Rejected(Frame, Failure),
    /// Something else went wrong.
    Notice(Failure),
    /// How things are.
    Stats(Box<stats::Message>),
}

impl Report {
    fn message(&self) -> (&'static str, Vec<u8>) {
        fn json(value: &impl Serialize) -> Vec<u8> {
            serde_json::to_vec(value).expect("a message is JSON")
        }
        match self {
            Self::Predicted(_, prediction) => ("prediction", json(prediction)),
            Self::Rejected(_, failure) | Self::Notice(failure) => ("error", json(failure)),
            Self::Stats(message) => ("stats", json(message)),
        }
    }

    fn mark_replayed(&mut self) {
        if let Self::Predicted(_, prediction) = self {
            prediction.replayed = true;
        }
    }

    fn acknowledged(&self, directory: &Directory) {
        let (frame, moved) = match self {
            Self::Predicted(frame, _) => (frame, directory.finish(frame)),
            Self::Rejected(frame, failure) => (frame, directory.reject(frame, &failure.message)),
            Self::Notice(_) | Self::Stats(_) => return,
        };
        if let Err(error) = moved {
            tracing::error!(id = frame.id, %error, "cannot move or remove photo");
        }
    }
}

/// Sends reports to the broker, for as long as it takes.
pub struct Publisher {
    config: Config,
    topic: String,
    directory: Arc<Directory>,
    reports: mpsc::Receiver<Report>,
    state: watch::Receiver<State>,
    orders: mpsc::Sender<(String, Vec<u8>)>,
    stop: watch::Receiver<bool>,
    /// Reports that were taken in and are not acknowledged, oldest first.
    pending: VecDeque<Report>,
}

enum End {
    /// The reports have ended or a stop was asked for, and nothing is left to do.
    Stopped,
    /// The connection is gone.
    Lost(Trouble),
}

impl Publisher {
    /// A publisher of what comes out of `reports`, and of `state` whenever it changes; orders go into
    /// `orders`. It stops when `stop` becomes true or `reports` end.
    pub fn new(
        config: &Config,
        directory: Arc<Directory>,
        reports: mpsc::Receiver<Report>,
        state: watch::Receiver<State>,
        orders: mpsc::Sender<(String, Vec<u8>)>,
        stop: watch::Receiver<bool>,
    ) -> Self {
        Self {
            config: config.clone(),
            topic: config.mqtt.topic(),
            directory,
            reports,
            state,
            orders,
            stop,
            pending: VecDeque::new(),
        }
    }

    /// Connects, and again whenever the connection is lost, until stopped.
    pub async fn run(mut self) {
        let mut pause = PAUSE.0;
        let mut away = false;
        let mut refusal = None;
        loop {
            let started = Instant::now();
            let trouble = match self.run_once(&mut away).await {
                End::Stopped => return,
                End::Lost(trouble) => trouble,
            };
            if started.elapsed() > PAUSE.1 {
                pause = PAUSE.0;
            }
            let broker = format!("{}:{}", self.config.mqtt.host, self.config.mqtt.port);
            let error = trouble.to_string();
            let is_new = !std::mem::replace(&mut away, true);
            match trouble.is_lasting() {
                true if is_new || refusal.as_ref() != Some(&error) => {
                    tracing::error!(broker, %error, "the broker cannot be used, photos wait");
                    refusal = Some(error);
                }
                false if is_new => tracing::warn!(broker, %error, "no broker, photos wait"),
                _ => tracing::debug!(broker, %error, ?pause, "still no broker"),
            }
            if trouble.is_lasting() {
                pause = PAUSE.1;
            }
            let jitter = pause.mul_f64(0.5 + fastrand::f64() / 2.0);
            tokio::select! {
                () = sleep(jitter) => pause = (pause * 2).min(PAUSE.1),
                () = told(&mut self.stop) => return,
            }
        }
    }

    /// One connection, from connecting to its end.
    async fn run_once(&mut self, away: &mut bool) -> End {
        let options = match self.options() {
            Ok(options) => options,
            Err(error) => return End::Lost(error.into()),
        };
        let (client, events) = connection::open(options, UNACKNOWLEDGED + 4);
        // Dropping a poll half-way would lose its progress, so the event loop has a task of its own.
        let (signals, mut connection) = mpsc::channel(1);
        let inbox = Inbox { topic: self.topic.clone(), orders: self.orders.clone() };
        let _task = AbortOnDrop(tokio::spawn(drive(events, signals, inbox)));
        tokio::select! {
            signal = connection.recv() => match signal {
                Some(Ok(())) => {}
                Some(Err(error)) => {
                    return End::Lost(Trouble::connecting(&error, &self.config));
                }
                None => return End::Lost(silent()),
            },
            () = told(&mut self.stop) => return End::Stopped,
        }
        tracing::info!(broker = self.config.mqtt.host, port = self.config.mqtt.port, "connected");
        *away = false;
        let link = Link { client, topic: self.topic.clone() };
        link.status("online").await;
        link.listen().await;
        let mut told_state = None;
        let state = self.state.borrow_and_update().clone();
        link.tell(&state, &mut told_state).await;
        let config = self.config.clone();
        let lost = |signal: Option<Result<(), ConnectionError>>| match signal {
            Some(Err(error)) => End::Lost(Trouble::lost(&error, &config)),
            _ => End::Lost(silent()),
        };

        let mut waiting = VecDeque::new();
        for report in &mut self.pending {
            report.mark_replayed();
            waiting.push_back(link.send(report).await);
        }
        let (mut ended, mut last_call) = (false, None);
        loop {
            if ended && waiting.is_empty() {
                link.status("offline").await;
                link.client.disconnect().await.ok();
                timeout(GRACE, connection.recv()).await.ok();
                return End::Stopped;
            }
            let room = !ended && waiting.len() < UNACKNOWLEDGED;
            tokio::select! {
                // What was acknowledged counts, even if the connection is lost at the same moment.
                biased;
                heard = front(&mut waiting, last_call) => match heard {
                    Some(true) => {
                        waiting.pop_front();
                        let report = self.pending.pop_front().expect("one pending each");
                        report.acknowledged(&self.directory);
                    }
                    Some(false) => return lost(connection.recv().await),
                    None => return End::Lost(silent()),
                },
                signal = connection.recv() => return lost(signal),
                report = self.reports.recv(), if room => match report {
                    Some(report) => {
                        waiting.push_back(link.send(&report).await);
                        self.pending.push_back(report);
                    }
                    None => ended = true,
                },
                Ok(()) = self.state.changed() => {
                    let state = self.state.borrow_and_update().clone();
                    link.tell(&state, &mut told_state).await;
                }
                () = told(&mut self.stop), if last_call.is_none() => {
                    last_call = Some(Instant::now() + GRACE);
                }
            }
        }
    }

    fn options(&self) -> Result<MqttOptions, ConfigError> {
        let mut options = connection::options(&self.config)?;
        let status = format!("{}/status", self.topic);
        options.set_last_will(LastWill::new(status, "offline", QoS::AtLeastOnce, true));
        options.set_max_packet_size(SMALL, LARGE);
        options.set_inflight(UNACKNOWLEDGED as u16 + 4);
        Ok(options)
    }
}

fn silent() -> Trouble {
    let seconds = ACKNOWLEDGE_WITHIN.as_secs();
    Trouble::Passing(format!("the broker acknowledged nothing for {seconds} s"))
}

/// A message that was sent, and what its acknowledgement will be told by.
struct Sent {
    at: Instant,
    acknowledged: Pin<Box<dyn Future<Output = bool> + Send>>,
}

/// Whether the oldest message was acknowledged, or nothing when that takes too long or longer than
/// `last_call`; waits for ever if there is none.
async fn front(waiting: &mut VecDeque<Sent>, last_call: Option<Instant>) -> Option<bool> {
    let Some(sent) = waiting.front_mut() else { return std::future::pending().await };
    let deadline = sent.at + ACKNOWLEDGE_WITHIN;
    let deadline = last_call.map_or(deadline, |last_call| last_call.min(deadline));
    timeout_at(deadline.into(), &mut sent.acknowledged).await.ok()
}

/// Waits until `stop` is true.
async fn told(stop: &mut watch::Receiver<bool>) {
    stop.wait_for(|stop| *stop).await.ok();
}

/// Where orders go.
struct Inbox {
    topic: String,
    orders: mpsc::Sender<(String, Vec<u8>)>,
}

impl Inbox {
    /// Takes in a message on `topic`. A retained one is an order of long ago, which the configuration
    /// has replaced.
    fn take(&self, topic: &str, payload: &[u8], retained: bool) {
        let name = topic.strip_prefix(&self.topic).and_then(|rest| rest.strip_prefix('/'));
        let Some(name) = name.and_then(|name| name.strip_suffix("/set")) else { return };
        if retained {
            tracing::warn!(topic, "retained order ignored, send it without retaining");
        } else if self.orders.try_send((name.to_owned(), payload.to_owned())).is_err() {
            tracing::warn!(topic, "too many orders, this one is ignored");
        }
    }
}

/// Tells when the connection stands, and when it is lost; then ends. Orders go to `inbox`.
async fn drive(
    mut events: EventLoop,
    signals: mpsc::Sender<Result<(), ConnectionError>>,
    inbox: Inbox,
) {
    loop {
        match events.poll().await {
            Ok(Event::Incoming(Packet::ConnAck(_))) => drop(signals.send(Ok(())).await),
            Ok(Event::Incoming(Packet::Publish(message))) => {
                let topic = String::from_utf8_lossy(&message.topic);
                inbox.take(&topic, &message.payload, message.retain);
            }
            Ok(Event::Incoming(Packet::SubAck(answer))) if connection::is_refused(&answer) => {
                let topic = format!("{}/+/set", inbox.topic);
                tracing::error!(
                    topic,
                    "the broker refuses this subscription, orders are not heard"
                );
            }
            Ok(_) => {}
            Err(error) => return drop(signals.send(Err(error)).await),
        }
    }
}

/// A standing connection.
struct Link {
    client: AsyncClient,
    topic: String,
}

impl Link {
    async fn send(&self, report: &Report) -> Sent {
        let (topic, payload) = report.message();
        let topic = format!("{}/{topic}", self.topic);
        let options = PublishOptions::new(QoS::AtLeastOnce);
        let notice = self.client.publish_tracked(topic, payload, options).await;
        let acknowledged = Box::pin(async {
            match notice {
                Ok(notice) => notice.wait_async().await.is_ok(),
                Err(_) => false,
            }
        });
        Sent { at: Instant::now(), acknowledged }
    }

    async fn status(&self, status: &'static str) {
        self.retain("status", status).await;
    }

    /// Tells what holds, but not again what `before` says was told.
    async fn tell(&self, state: &State, before: &mut Option<State>) {
        let told = before.as_ref().map(State::messages);
        for (index, (name, word)) in state.messages().into_iter().enumerate() {
            if told.as_ref().is_none_or(|told| told[index].1 != word) {
                self.retain(name, &word).await;
            }
        }
        *before = Some(state.clone());
    }

    /// Asks for orders.
    async fn listen(&self) {
        let topic = format!("{}/+/set", self.topic);
        self.client.subscribe(topic, QoS::AtLeastOnce).await.ok();
    }

    async fn retain(&self, name: &str, payload: &str) {
        let topic = format!("{}/{name}", self.topic);
        let options = PublishOptions::new(QoS::AtLeastOnce).retained();
        // A failure here is a lost connection, which the event loop reports.
        self.client.publish(topic, payload.to_owned(), options).await.ok();
    }
}

struct AbortOnDrop(tokio::task::JoinHandle<()>);

impl Drop for AbortOnDrop {
    fn drop(&mut self) {
        self.0.abort();
    }
}
