//! The demo's ear: an MQTT client that hears everything below a topic.

use std::net::Ipv4Addr;

use anyhow::{Context, Result};
use rumqttc::{AsyncClient, Broker, Event, EventLoop, MqttOptions, Packet, QoS};
use tokio::sync::mpsc::{UnboundedReceiver, UnboundedSender, unbounded_channel};
use tokio::task::JoinHandle;

/// A message as it arrived.
#[derive(Debug)]
pub(crate) struct Message {
    /// What comes after the topic that was subscribed to and a slash.
    pub(crate) name: String,
    pub(crate) payload: Vec<u8>,
}

/// Hears until it is dropped.
pub(crate) struct Subscriber {
    messages: UnboundedReceiver<Message>,
    task: JoinHandle<()>,
}

impl Subscriber {
    /// Connects to the broker at a port of 127.0.0.1 and subscribes to everything below `topic`;
    /// when this returns, the broker has agreed.
    ///
    /// # Errors
    /// When there is no broker, or it does not want to.
    pub(crate) async fn connect(port: u16, topic: &str) -> Result<Self> {
        let broker = Broker::tcp(Ipv4Addr::LOCALHOST.to_string(), port);
        let options = MqttOptions::new("vggd-demo-subscriber", broker);
        let (client, mut events) = AsyncClient::builder(options).capacity(1).build();
        client.subscribe(format!("{topic}/#"), QoS::AtLeastOnce).await?;
        loop {
            let event = events.poll().await.context("cannot subscribe")?;
            if matches!(event, Event::Incoming(Packet::SubAck(_))) {
                break;
            }
        }
        let (heard, messages) = unbounded_channel();
        let task = tokio::spawn(listen(client, events, format!("{topic}/"), heard));
        Ok(Self { messages, task })
    }

    /// The next message, or nothing when the connection is lost.
    pub(crate) async fn next(&mut self) -> Option<Message> {
        self.messages.recv().await
    }
}

impl Drop for Subscriber {
    fn drop(&mut self) {
        self.task.abort();
    }
}

/// Passes messages on; the client has to live as long as its event loop.
async fn listen(
    _client: AsyncClient,
    mut events: EventLoop,
    prefix: String,
    heard: UnboundedSender<Message>,
) {
    while let Ok(event) = events.poll().await {
        let Event::Incoming(Packet::Publish(publish)) = event else { continue };
        let topic = String::from_utf8_lossy(&publish.topic);
        let name = topic.strip_prefix(&prefix).unwrap_or(&topic).to_owned();
        if heard.send(Message { name, payload: publish.payload.to_vec() }).is_err() {
            return;
        }
    }
}
