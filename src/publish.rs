//! MQTT: the only user of rumqttc.
//!
//! Records of the outbox go out at QoS 1 in their order, and each stays there until the broker has
//! acknowledged it. A connection that fails is thrown away whole and built anew after a pause, and
//! everything unacknowledged is sent again, in order. Beside them go notices, which nobody keeps, and what
//! holds at the moment, on retained topics.
//!
//! Orders come in on `TOPIC/<name>/set`, and are handed on as they are.

pub mod connection;

use std::collections::{BTreeMap, VecDeque};
use std::future::Future;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, Instant};

use rumqttc::{
    AsyncClient, ConnectionError, Event, EventLoop, LastWill, MqttOptions, Packet, PublishOptions,
    QoS,
};
use serde::Serialize;
use tokio::sync::{Notify, mpsc, watch};
use tokio::time::{sleep, timeout, timeout_at};

use self::connection::Trouble;
use crate::config::{Config, ConfigError};
use crate::control::{Asked, LONGEST};
use crate::event::{self, Failure, Prediction};
use crate::homeassistant;
use crate::outbox::{Kind, Outbox, Record};
use crate::pulse::{BEAT, Pulse};

/// Records that may be on their way to the broker at once.
const UNACKNOWLEDGED: usize = 16;

/// Other messages that may be.
const BESIDES: usize = 32;

/// A broker that acknowledges nothing for this long is as good as gone, or for `mqtt.keep_alive_s`, if that
/// is shorter.
const ACKNOWLEDGE_WITHIN: Duration = Duration::from_secs(20);

/// How long a stop waits for the last acknowledgements.
const GRACE: Duration = Duration::from_secs(5);

/// The largest packet that comes in, in bytes. Orders are much smaller, but what is too long to be one
/// shall be refused as an order is, and not end the connection.
const INCOMING: usize = 1 << 20;

/// The largest that goes out, a picture.
const OUTGOING: usize = 5 << 20;

/// How long nobody listens to orders after a packet that was larger still. A broker gives one that is
/// retained again as soon as somebody listens.
const DEAF: Duration = Duration::from_secs(600);

/// The pause before the first new attempt, and the longest one.
const PAUSE: (Duration, Duration) = (Duration::from_millis(250), Duration::from_secs(30));

/// How soon what holds is told again when the connection was too busy for it.
const AGAIN: Duration = Duration::from_millis(200);

/// Something to tell once: lost if nobody is there to hear it.
#[derive(Debug)]
pub struct Notice {
    topic: &'static str,
    payload: Vec<u8>,
}

impl Notice {
    /// A message on `TOPIC/topic`.
    pub fn new(topic: &'static str, payload: Vec<u8>) -> Self {
        Self { topic, payload }
    }

    /// A message of JSON.
    pub fn json(topic: &'static str, message: &impl Serialize) -> Self {
        Self::new(topic, event::json(message))
    }

    /// A message on `error`.
    pub fn failure(failure: &Failure) -> Self {
        Self::json("error", failure)
    }
}

/// What holds: whole topics and their retained payloads. An empty payload takes back what was there.
pub type Retained = BTreeMap<String, Vec<u8>>;

/// Where what is published comes from, and where orders go.
pub struct Channels {
    /// What must arrive.
    pub outbox: Arc<Outbox>,
    /// Told of whenever something was put into the outbox.
    pub fresh: Arc<Notify>,
    /// What need not arrive. When these end, and the outbox is empty, the publisher stops.
    pub notices: mpsc::Receiver<Notice>,
    /// What holds.
    pub retained: watch::Receiver<Retained>,
    /// Takes what is ordered.
    pub orders: mpsc::Sender<Asked>,
    /// Becomes true when it is time to stop.
    pub stop: watch::Receiver<bool>,
    /// Says how it goes.
    pub health: Arc<Health>,
}

/// How the connection fares.
#[derive(Debug, Default)]
pub struct Health {
    pulse: Pulse,
    connected: AtomicBool,
    reconnects: AtomicU64,
    done: AtomicBool,
}

impl Health {
    /// Stamped by the publisher, whether there is a connection or not.
    pub fn pulse(&self) -> &Pulse {
        &self.pulse
    }

    /// Whether there is a connection.
    pub fn connected(&self) -> bool {
        self.connected.load(Ordering::Relaxed)
    }

    /// Whether the last connection ended in order, and all that holds was told before.
    pub fn done(&self) -> bool {
        self.done.load(Ordering::Relaxed)
    }

    /// How often there was one again.
    pub fn reconnects(&self) -> u64 {
        self.reconnects.load(Ordering::Relaxed)
    }
}

/// Sends records and notices to the broker, for as long as it takes.
pub struct Publisher {
    config: Config,
    topic: String,
    channels: Channels,
    /// The last record that was sent, in this connection or one before.
    sent: u64,
    /// Until when orders are not listened to.
    deaf_until: Option<Instant>,
}

enum End {
    /// The reports have ended or a stop was asked for, and nothing is left to do.
    Stopped,
    /// The connection is gone.
    Lost(Trouble),
}

impl Publisher {
    /// A publisher that connects as `config` says.
    pub fn new(config: &Config, channels: Channels) -> Self {
        Self {
            config: config.clone(),
            topic: config.mqtt.topic(),
            channels,
            sent: 0,
            deaf_until: None,
        }
    }

    /// Connects, and again whenever the connection is lost, until stopped.
    pub async fn run(mut self) {
        let mut pause = PAUSE.0;
        let mut away = false;
        let mut refusal = None;
        loop {
            self.channels.health.pulse.beat();
            let started = Instant::now();
            let end = self.run_once(&mut away).await;
            self.channels.health.connected.store(false, Ordering::Relaxed);
            let trouble = match end {
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
                _ if trouble.is_flooding() => {
                    let minutes = DEAF.as_secs() / 60;
                    tracing::error!(broker, %error, minutes, "orders are not heard for a while");
                    self.deaf_until = Some(Instant::now() + DEAF);
                }
                true if is_new || refusal.as_ref() != Some(&error) => {
                    tracing::error!(broker, %error, "the broker cannot be used, predictions wait");
                    refusal = Some(error);
                }
                false if is_new => tracing::warn!(broker, %error, "no broker, predictions wait"),
                _ => tracing::debug!(broker, %error, ?pause, "still no broker"),
            }
            if trouble.is_lasting() {
                pause = PAUSE.1;
            }
            let jitter = pause.mul_f64(0.5 + fastrand::f64() / 2.0);
            tokio::select! {
                () = sleep(jitter) => pause = (pause * 2).min(PAUSE.1),
                () = told(&mut self.channels.stop) => return,
            }
        }
    }

    /// One connection, from connecting to its end.
    async fn run_once(&mut self, away: &mut bool) -> End {
        let options = match self.options() {
            Ok(options) => options,
            Err(error) => return End::Lost(error.into()),
        };
        let capacity = UNACKNOWLEDGED + BESIDES;
        let (client, events) = connection::open(options, capacity);
        let Channels { outbox, fresh, notices, retained, orders, stop, health } =
            &mut self.channels;
        // Dropping a poll half-way would lose its progress, so the event loop has a task of its own.
        let (signals, mut connection) = mpsc::channel(1);
        let patience = ACKNOWLEDGE_WITHIN.min(self.config.mqtt.keep_alive());
        let birth = homeassistant::birth(&self.config);
        let topic = self.topic.clone();
        let inbox = Inbox { topic: topic.clone(), birth: birth.clone(), orders: orders.clone() };
        let _task = AbortOnDrop(tokio::spawn(drive(events, signals, inbox)));
        tokio::select! {
            signal = connection.recv() => match signal {
                Some(Signal::Lost(error)) => {
                    return End::Lost(Trouble::connecting(&error, &self.config));
                },
                Some(Signal::Connected | Signal::Born) => {}
                None => return End::Lost(silent(patience)),
            },
            () = told(stop) => return End::Stopped,
        }
        tracing::info!(broker = self.config.mqtt.host, port = self.config.mqtt.port, "connected");
        health.connected.store(true, Ordering::Relaxed);
        health.reconnects.fetch_add(u64::from(std::mem::take(away)), Ordering::Relaxed);
        let mut link = Link { client, topic, told: Retained::new() };
        link.retain("status", "online").await;
        let mut is_listening = false;

        let config = self.config.clone();
        let lost = |signal: Option<Signal>| match signal {
            Some(Signal::Lost(error)) => End::Lost(Trouble::lost(&error, &config)),
            _ => End::Lost(silent(patience)),
        };
        let (mut waiting, mut position) = (VecDeque::new(), 0);
        let (mut ended, mut last_call, mut due) = (false, None, true);
        loop {
            health.pulse.beat();
            if !is_listening && self.deaf_until.is_none_or(|end| Instant::now() >= end) {
                link.listen(birth.as_deref()).await;
                is_listening = true;
            }
            let open = last_call.is_none_or(|last_call| Instant::now() < last_call);
            while open && waiting.len() < UNACKNOWLEDGED {
                let Some(record) = outbox.next(position) else { break };
                position = record.number;
                let replayed = record.replayed || record.number <= self.sent;
                self.sent = self.sent.max(record.number);
                waiting.push_back(link.send(record, replayed).await);
            }
            if due {
                let holds = retained.borrow_and_update().clone();
                due = !link.tell(holds);
            }
            if ended && waiting.is_empty() {
                link.retain("status", "offline").await;
                link.client.disconnect().await.ok();
                timeout(GRACE, connection.recv()).await.ok();
                health.done.store(!due, Ordering::Relaxed);
                return End::Stopped;
            }
            tokio::select! {
                // What was acknowledged counts, even if the connection is lost at the same moment.
                biased;
                heard = front(&mut waiting, patience, last_call) => match heard {
                    Some(Some(number)) => {
                        waiting.pop_front();
                        outbox.acknowledge(number);
                    }
                    Some(None) => return lost(connection.recv().await),
                    None if last_call.is_some() => return End::Stopped,
                    None => return End::Lost(silent(patience)),
                },
                signal = connection.recv() => match signal {
                    Some(Signal::Connected) => {}
                    Some(Signal::Born) => {
                        link.told.clear();
                        due = true;
                    }
                    signal => return lost(signal),
                },
                notice = notices.recv(), if !ended => match notice {
                    Some(notice) => link.notify(notice),
                    None => ended = true,
                },
                () = fresh.notified() => {}
                Ok(()) = retained.changed() => due = true,
                () = sleep(if due { AGAIN } else { BEAT }) => {}
                () = told(stop), if last_call.is_none() => {
                    last_call = Some(Instant::now() + GRACE);
                }
            }
        }
    }

    fn options(&self) -> Result<MqttOptions, ConfigError> {
        let mut options = connection::options(&self.config)?;
        let status = format!("{}/status", self.topic);
        options.set_last_will(LastWill::new(status, "offline", QoS::AtLeastOnce, true));
        options.set_max_packet_size(INCOMING, OUTGOING);
        options.set_inflight((UNACKNOWLEDGED + BESIDES) as u16);
        Ok(options)
    }
}

fn silent(patience: Duration) -> Trouble {
    let seconds = patience.as_secs();
    Trouble::Passing(format!("the broker acknowledged nothing for {seconds} s"))
}

/// A record that was sent, and what its acknowledgement will be told by.
struct Sent {
    number: u64,
    at: Instant,
    acknowledged: Pin<Box<dyn Future<Output = bool> + Send>>,
}

/// The number of the oldest record if it was acknowledged, no number if it never will be, or nothing when
/// that takes longer than `patience` or `last_call`; waits for ever if there is none.
async fn front(
    waiting: &mut VecDeque<Sent>,
    patience: Duration,
    last_call: Option<Instant>,
) -> Option<Option<u64>> {
    let Some(sent) = waiting.front_mut() else { return std::future::pending().await };
    let deadline = sent.at + patience;
    let deadline = last_call.map_or(deadline, |last_call| last_call.min(deadline));
    let acknowledged = timeout_at(deadline.into(), &mut sent.acknowledged).await.ok()?;
    Some(acknowledged.then_some(sent.number))
}

/// Waits until `stop` is true.
async fn told(stop: &mut watch::Receiver<bool>) {
    stop.wait_for(|stop| *stop).await.ok();
}

/// Where messages that come in go.
struct Inbox {
    topic: String,
    /// Where Home Assistant says that it has started.
    birth: Option<String>,
    orders: mpsc::Sender<Asked>,
}

impl Inbox {
    /// Takes in a message on `topic`: an order, or what is given back. A retained order is one of long
    /// ago, which the configuration has replaced.
    fn take(&self, topic: &str, payload: &[u8], retained: bool) -> Option<Signal> {
        if self.birth.as_deref() == Some(topic) {
            return (payload == homeassistant::STARTED && !retained).then_some(Signal::Born);
        }
        let name = topic.strip_prefix(&self.topic).and_then(|rest| rest.strip_prefix('/'));
        let name = name.and_then(|name| name.strip_suffix("/set"))?;
        let payload = &payload[..payload.len().min(LONGEST + 1)];
        if retained {
            tracing::warn!(topic, "retained order ignored, send it without retaining");
        } else if self.orders.try_send(Asked::new(name.to_owned(), payload.to_owned())).is_err() {
            tracing::warn!(topic, "too many orders, this one is ignored");
        }
        None
    }
}

/// What the event loop tells.
enum Signal {
    Connected,
    /// Home Assistant has started.
    Born,
    Lost(Box<ConnectionError>),
}

/// Tells when the connection stands, and when it is lost; then ends. What comes in goes to `inbox`.
async fn drive(mut events: EventLoop, signals: mpsc::Sender<Signal>, inbox: Inbox) {
    loop {
        let signal = match events.poll().await {
            Ok(Event::Incoming(Packet::ConnAck(_))) => Some(Signal::Connected),
            Ok(Event::Incoming(Packet::Publish(message))) => {
                let topic = String::from_utf8_lossy(&message.topic);
                inbox.take(&topic, &message.payload, message.retain)
            }
            Ok(Event::Incoming(Packet::SubAck(answer))) if connection::is_refused(&answer) => {
                let topic = format!("{}/+/set", inbox.topic);
                tracing::error!(
                    topic,
                    "the broker refuses this subscription, orders are not heard"
                );
                None
            }
            Ok(_) => None,
            Err(error) => return drop(signals.send(Signal::Lost(Box::new(error))).await),
        };
        if let Some(signal) = signal {
            signals.send(signal).await.ok();
        }
    }
}

/// A standing connection.
struct Link {
    client: AsyncClient,
    topic: String,
    /// What the broker was told that holds.
    told: Retained,
}

impl Link {
    async fn send(&self, record: Record, replayed: bool) -> Sent {
        let (topic, payload) = match record.kind {
            Kind::Prediction if replayed => ("prediction", Prediction::replayed(record.payload)),
            Kind::Prediction => ("prediction", record.payload),
            Kind::Failure => ("error", record.payload),
        };
        let topic = format!("{}/{topic}", self.topic);
        let options = PublishOptions::new(QoS::AtLeastOnce);
        let notice = self.client.publish_tracked(topic, payload, options).await;
        let acknowledged = Box::pin(async {
            match notice {
                Ok(notice) => notice.wait_async().await.is_ok(),
                Err(_) => false,
            }
        });
        Sent { number: record.number, at: Instant::now(), acknowledged }
    }

    /// Sends what nobody keeps, if there is room for it.
    fn notify(&self, notice: Notice) {
        let topic = format!("{}/{}", self.topic, notice.topic);
        let options = PublishOptions::new(QoS::AtLeastOnce);
        if self.client.try_publish(&topic, notice.payload, options).is_err() {
            tracing::debug!(topic, "the connection is busy, a message is left out");
        }
    }

    /// Tells what holds and was not told yet; false if some of it has to be told later.
    fn tell(&mut self, holds: Retained) -> bool {
        for (topic, payload) in holds {
            if self.told.get(&topic) == Some(&payload) {
                continue;
            }
            let options = PublishOptions::new(QoS::AtLeastOnce).retained();
            if self.client.try_publish(topic.as_str(), payload.clone(), options).is_err() {
                return false;
            }
            self.told.insert(topic, payload);
        }
        true
    }

    /// Asks for orders, and for news of Home Assistant.
    async fn listen(&self, birth: Option<&str>) {
        let orders = format!("{}/+/set", self.topic);
        for topic in std::iter::once(orders.as_str()).chain(birth) {
            self.client.subscribe(topic, QoS::AtLeastOnce).await.ok();
        }
    }

    async fn retain(&self, name: &str, payload: &'static str) {
        let topic = format!("{}/{name}", self.topic);
        let options = PublishOptions::new(QoS::AtLeastOnce).retained();
        // A failure here is a lost connection, which the event loop reports.
        self.client.publish(topic, payload, options).await.ok();
    }
}

struct AbortOnDrop(tokio::task::JoinHandle<()>);

impl Drop for AbortOnDrop {
    fn drop(&mut self) {
        self.0.abort();
    }
}
