//! A small MQTT 3.1.1 broker for the demo, on the loopback interface only.
//!
//! It knows what the demo needs: QoS 0 and 1, wildcards, retained messages, last wills and
//! keep-alive. A session ends with its connection, so that nothing is ever sent again and an
//! acknowledgement from a subscriber means nothing. There are no logins, no QoS 2, no TLS and no
//! topics that start with `$`, and nothing is written to disk.

use std::collections::BTreeMap;
use std::io;
use std::net::Ipv4Addr;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use bytes::BytesMut;
use rumqttc::mqttbytes::{Error, matches, valid_filter};
use rumqttc::{
    ConnAck, Connect, ConnectReturnCode, LastWill, Packet, PubAck, Publish, QoS, SubAck, Subscribe,
    SubscribeReasonCode, UnsubAck,
};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::mpsc::{UnboundedReceiver, UnboundedSender, unbounded_channel};
use tokio::task::{JoinHandle, JoinSet};
use tokio::time::{Instant, sleep, sleep_until, timeout};

/// The largest packet, in bytes.
const LARGEST: usize = 1 << 20;

/// How long a connection may take to say who it is.
const CONNECT_WITHIN: Duration = Duration::from_secs(10);

/// How long to leave the listener alone after it failed.
const PAUSE: Duration = Duration::from_millis(100);

/// Serves until it is dropped.
pub(crate) struct Broker {
    port: u16,
    task: JoinHandle<()>,
}

impl Broker {
    /// Listens at a free port of 127.0.0.1.
    ///
    /// # Errors
    /// When there is no port to be had.
    pub(crate) async fn start() -> io::Result<Self> {
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).await?;
        let port = listener.local_addr()?.port();
        Ok(Self { port, task: tokio::spawn(listen(listener)) })
    }

    /// The port that it listens at.
    pub(crate) fn port(&self) -> u16 {
        self.port
    }
}

impl Drop for Broker {
    fn drop(&mut self) {
        self.task.abort();
    }
}

async fn listen(listener: TcpListener) {
    let exchange = Arc::<Mutex<Exchange>>::default();
    let mut connections = JoinSet::new();
    loop {
        match listener.accept().await {
            Ok((socket, _)) => drop(connections.spawn(serve(socket, exchange.clone()))),
            Err(error) => {
                tracing::warn!(%error, "broker: cannot accept a connection");
                sleep(PAUSE).await;
            }
        }
        while connections.try_join_next().is_some() {}
    }
}

/// One connection, from its first packet to its end.
async fn serve(socket: TcpStream, exchange: Arc<Mutex<Exchange>>) {
    socket.set_nodelay(true).ok();
    let mut link = Link { socket, inbox: BytesMut::new() };
    let connect = match timeout(CONNECT_WITHIN, link.receive()).await {
        Ok(Ok(Packet::Connect(connect))) => connect,
        _ => return tracing::debug!("broker: no CONNECT from a client"),
    };
    let (number, outgoing) = exchange.lock().unwrap().join(&connect.client_id);
    let ended = converse(&mut link, &exchange, number, outgoing, &connect).await;
    let mut exchange = exchange.lock().unwrap();
    exchange.sessions.remove(&number);
    if let Err(error) = ended {
        tracing::debug!(client_id = connect.client_id, %error, "broker: connection lost");
        if let Some(LastWill { topic, message, qos, retain }) = connect.last_will {
            exchange.publish(Publish { retain, ..Publish::from_bytes(topic, qos, message) });
        }
    }
}

/// Ends well only when the client says goodbye.
async fn converse(
    link: &mut Link,
    exchange: &Mutex<Exchange>,
    number: u64,
    mut outgoing: UnboundedReceiver<Packet>,
    connect: &Connect,
) -> Result<(), Error> {
    link.send(Packet::ConnAck(ConnAck::new(ConnectReturnCode::Success, false))).await?;
    let keep_alive = Duration::from_secs(connect.keep_alive.into());
    let mut heard = Instant::now();
    loop {
        let silence = sleep_until(heard + keep_alive.mul_f64(1.5));
        tokio::select! {
            packet = link.receive() => {
                heard = Instant::now();
                match packet? {
                    Packet::Disconnect => return Ok(()),
                    packet => exchange.lock().unwrap().handle(number, packet)?,
                }
            }
            packet = outgoing.recv() => match packet {
                Some(packet) => link.send(packet).await?,
                None => return Err(io::Error::other("another client has the same name").into()),
            },
            () = silence, if !keep_alive.is_zero() => {
                return Err(io::Error::from(io::ErrorKind::TimedOut).into());
            }
        }
    }
}

/// Packets over a socket.
struct Link {
    socket: TcpStream,
    inbox: BytesMut,
}

impl Link {
    /// The next packet; dropping the future half-way loses nothing.
    async fn receive(&mut self) -> Result<Packet, Error> {
        loop {
            match Packet::read(&mut self.inbox, LARGEST) {
                Err(Error::InsufficientBytes(_)) => {}
                packet => return packet,
            }
            if self.socket.read_buf(&mut self.inbox).await? == 0 {
                return Err(io::Error::from(io::ErrorKind::UnexpectedEof).into());
            }
        }
    }

    async fn send(&mut self, packet: Packet) -> Result<(), Error> {
        let mut bytes = BytesMut::new();
        packet.write(&mut bytes, usize::MAX)?;
        Ok(self.socket.write_all(&bytes).await?)
    }
}

/// Who is there and what was said to last.
#[derive(Default)]
struct Exchange {
    sessions: BTreeMap<u64, Session>,
    /// By topic.
    retained: BTreeMap<String, Publish>,
    joined: u64,
}

struct Session {
    client_id: String,
    filters: BTreeMap<String, QoS>,
    outgoing: UnboundedSender<Packet>,
    packet_id: u16,
}

impl Exchange {
    /// A new session. One of the same name ends, unless the name is empty.
    fn join(&mut self, client_id: &str) -> (u64, UnboundedReceiver<Packet>) {
        self.sessions.retain(|_, other| client_id.is_empty() || other.client_id != client_id);
        self.joined += 1;
        let (outgoing, packets) = unbounded_channel();
        let (client_id, filters) = (client_id.to_owned(), BTreeMap::new());
        let session = Session { client_id, filters, outgoing, packet_id: 0 };
        self.sessions.insert(self.joined, session);
        (self.joined, packets)
    }

    /// What a client sent after its CONNECT.
    ///
    /// # Errors
    /// When it must not, or the broker does not know how to answer: the connection has to end.
    fn handle(&mut self, number: u64, packet: Packet) -> Result<(), Error> {
        match packet {
            Packet::Publish(publish) => {
                match publish.qos {
                    QoS::AtMostOnce => {}
                    QoS::AtLeastOnce => {
                        self.reply(number, Packet::PubAck(PubAck::new(publish.pkid)));
                    }
                    QoS::ExactlyOnce => return Err(Error::InvalidQoS(2)),
                }
                self.publish(publish);
            }
            Packet::Subscribe(subscribe) => self.subscribe(number, subscribe),
            Packet::Unsubscribe(unsubscribe) => {
                if let Some(session) = self.sessions.get_mut(&number) {
                    session.filters.retain(|filter, _| !unsubscribe.topics.contains(filter));
                }
                self.reply(number, Packet::UnsubAck(UnsubAck::new(unsubscribe.pkid)));
            }
            Packet::PingReq => self.reply(number, Packet::PingResp),
            Packet::PubAck(_) => {}
            packet => return Err(Error::InvalidPacketType(packet.packet_type() as u8)),
        }
        Ok(())
    }

    fn reply(&self, number: u64, packet: Packet) {
        if let Some(session) = self.sessions.get(&number) {
            session.send(packet);
        }
    }

    /// Hands a message to everybody who asked for its topic, and keeps it if it is to be retained;
    /// an empty one clears what was kept.
    fn publish(&mut self, publish: Publish) {
        let topic = String::from_utf8_lossy(&publish.topic).into_owned();
        let granted = |session: &Session| {
            let filters = session.filters.iter();
            let granted =
                filters.filter(|(filter, _)| matches(&topic, filter)).map(|(_, qos)| *qos);
            granted.reduce(higher)
        };
        for session in self.sessions.values_mut() {
            if let Some(qos) = granted(session) {
                session.deliver(Publish { retain: false, ..publish.clone() }, qos);
            }
        }
        match (publish.retain, publish.payload.is_empty()) {
            (true, true) => drop(self.retained.remove(&topic)),
            (true, false) => drop(self.retained.insert(topic, publish)),
            (false, _) => {}
        }
    }

    fn subscribe(&mut self, number: u64, subscribe: Subscribe) {
        let Some(session) = self.sessions.get_mut(&number) else { return };
        let codes = subscribe.filters.iter().map(|asked| match valid_filter(&asked.path) {
            true => SubscribeReasonCode::Success(lower(asked.qos, QoS::AtLeastOnce)),
            false => SubscribeReasonCode::Failure,
        });
        let codes: Vec<_> = codes.collect();
        let reply = SubAck::new(subscribe.pkid, codes.clone());
        session.send(Packet::SubAck(reply));
        for (asked, code) in subscribe.filters.into_iter().zip(codes) {
            let SubscribeReasonCode::Success(qos) = code else { continue };
            for (topic, publish) in &self.retained {
                if matches(topic, &asked.path) {
                    session.deliver(publish.clone(), qos);
                }
            }
            session.filters.insert(asked.path, qos);
        }
    }
}

impl Session {
    /// Sends a message at the lower of its own QoS and the granted one.
    fn deliver(&mut self, publish: Publish, granted: QoS) {
        let qos = lower(publish.qos, granted);
        let pkid = match qos {
            QoS::AtMostOnce => 0,
            _ => {
                self.packet_id = self.packet_id.checked_add(1).unwrap_or(1);
                self.packet_id
            }
        };
        self.send(Packet::Publish(Publish { dup: false, qos, pkid, ..publish }));
    }

    /// To nobody, when the connection is about to end.
    fn send(&self, packet: Packet) {
        self.outgoing.send(packet).ok();
    }
}

fn lower(a: QoS, b: QoS) -> QoS {
    if a < b { a } else { b }
}

fn higher(a: QoS, b: QoS) -> QoS {
    if a < b { b } else { a }
}

#[cfg(test)]
mod tests;
