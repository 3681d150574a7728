//! How to get a connection: where the broker is, TLS, the login, and what went wrong in words that say
//! what to do. It must not know what is sent.
//!
//! The password and all certificates are read anew for each attempt, so that renewed ones are taken
//! over without a restart.

use std::error::Error;
use std::fs;
use std::io;
use std::path::Path;
use std::sync::Arc;

use rumqttc::tokio_rustls::rustls;
use rumqttc::{
    AsyncClient, Broker, ConnectReturnCode, ConnectionError, Error as PacketError, EventLoop,
    MqttOptions, NetworkOptions, StateError, SubAck, SubscribeReasonCode, TlsConfiguration,
    TlsError, Transport,
};
use rustls::client::ResolvesClientCert;
use rustls::crypto::ring;
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer, ServerName};
use rustls::sign::{CertifiedKey, SingleCertAndKey};
use rustls::{
    AlertDescription, CertificateError, ClientConfig, InconsistentKeys, InvalidMessage,
    RootCertStore,
};

use self::Trouble::{Flooding, Lasting, Passing};
use crate::config::{Config, ConfigError};
use crate::secret;

/// Seconds within which there is a connection, with the broker's consent, or none.
const CONNECT_WITHIN_S: u64 = 5;

/// The longest password that MQTT can carry, in bytes.
const LONGEST_PASSWORD: usize = u16::MAX as usize;

/// Looks at everything that a connection needs, the network and the broker excepted.
///
/// # Errors
/// [`ConfigError`] that names the key and its file.
pub fn check(config: &Config) -> Result<(), ConfigError> {
    options(config).map(drop)
}

/// Address, client id, keep-alive, encryption and login.
///
/// # Errors
/// [`ConfigError`] that names the key and its file.
pub(super) fn options(config: &Config) -> Result<MqttOptions, ConfigError> {
    let broker = Broker::tcp(config.mqtt.host.clone(), config.mqtt.port);
    let mut options = MqttOptions::new(config.mqtt.client_id(), broker);
    options.set_keep_alive(config.mqtt.keep_alive().as_secs() as u16);
    if config.mqtt.tls {
        let tls = TlsConfiguration::Rustls(Arc::new(encryption(config)?));
        options.set_transport(Transport::tls_with_config(tls));
    }
    let user = &config.mqtt.username;
    if !user.is_empty() {
        let (key, file) = ("mqtt.password_file", &config.mqtt.password_file);
        match secret::read(config, key, file, "mqtt-password", 1..=LONGEST_PASSWORD)? {
            Some(password) => options.set_credentials(user, password),
            None => options.set_username(user),
        };
    }
    Ok(options)
}

/// A client with room for `capacity` requests; its connection is made by polling.
pub(super) fn open(options: MqttOptions, capacity: usize) -> (AsyncClient, EventLoop) {
    let (client, mut events) = AsyncClient::builder(options).capacity(capacity).build();
    let mut network = NetworkOptions::new();
    network.set_connection_timeout(CONNECT_WITHIN_S);
    events.set_network_options(network);
    (client, events)
}

/// Whom to trust, and who this device is.
fn encryption(config: &Config) -> Result<ClientConfig, ConfigError> {
    let mqtt = &config.mqtt;
    ServerName::try_from(mqtt.host.as_str())
        .map_err(|_| config.wrong("mqtt.host", &mqtt.host, "is neither a name nor an address"))?;
    let mut client = match mqtt.ca_file.as_os_str().is_empty() {
        true => system_authorities(config)?,
        false => authorities(config)?,
    };
    if !mqtt.certificate_file.as_os_str().is_empty() {
        client.client_auth_cert_resolver = identity(config)?;
    }
    Ok(client)
}

fn system_authorities(config: &Config) -> Result<ClientConfig, ConfigError> {
    match TlsConfiguration::try_default_rustls() {
        Ok(TlsConfiguration::Rustls(client)) => Ok(Arc::unwrap_or_clone(client)),
        Ok(_) => unreachable!("rustls is the only implementation here"),
        Err(error) => {
            let problem = format!("the system's certificate authorities cannot be read: {error}");
            Err(config.wrong("mqtt.ca_file", "", problem))
        }
    }
}

fn authorities(config: &Config) -> Result<ClientConfig, ConfigError> {
    let (key, file) = ("mqtt.ca_file", &config.mqtt.ca_file);
    let mut roots = RootCertStore::empty();
    for certificate in certificates(config, key, file)? {
        roots.add(certificate).map_err(|error| config.wrong(key, file.display(), error))?;
    }
    let client = ClientConfig::builder_with_provider(Arc::new(ring::default_provider()))
        .with_safe_default_protocol_versions()
        .expect("ring knows the default versions");
    Ok(client.with_root_certificates(roots).with_no_client_auth())
}

/// This device's certificate with its key.
fn identity(config: &Config) -> Result<Arc<dyn ResolvesClientCert>, ConfigError> {
    let (key, file) = ("mqtt.certificate_file", &config.mqtt.certificate_file);
    let chain = certificates(config, key, file)?;
    let (key, file) = ("mqtt.key_file", &config.mqtt.key_file);
    let wrong = |problem: String| config.wrong(key, file.display(), problem);
    let secret = PrivateKeyDer::from_pem_slice(&read(config, key, file)?)
        .map_err(|_| wrong("has no key in it that is PEM and not encrypted".to_owned()))?;
    let identity =
        CertifiedKey::from_der(chain, secret, &ring::default_provider()).map_err(|error| {
            wrong(match error {
                rustls::Error::InconsistentKeys(InconsistentKeys::KeyMismatch) => {
                    "is not the key of mqtt.certificate_file".to_owned()
                }
                error => error.to_string(),
            })
        })?;
    Ok(Arc::new(SingleCertAndKey::from(identity)))
}

/// At least one certificate.
fn certificates(
    config: &Config,
    key: &str,
    file: &Path,
) -> Result<Vec<CertificateDer<'static>>, ConfigError> {
    let text = read(config, key, file)?;
    let found = CertificateDer::pem_slice_iter(&text).collect::<Result<Vec<_>, _>>();
    let found = found.map_err(|error| config.wrong(key, file.display(), error))?;
    match found.is_empty() {
        true => Err(config.wrong(key, file.display(), "has no certificate in it (PEM)")),
        false => Ok(found),
    }
}

fn read(config: &Config, key: &str, file: &Path) -> Result<Vec<u8>, ConfigError> {
    fs::read(file).map_err(|error| config.wrong(key, file.display(), error))
}

/// Why there is no connection, and what to do about it.
#[derive(Debug, thiserror::Error)]
pub(super) enum Trouble {
    /// A person must change something: trying again soon is of no use.
    #[error("{0}")]
    Lasting(String),
    /// It may pass: the connection is tried again.
    #[error("{0}")]
    Passing(String),
    /// What comes in is too large: the connection is tried again, without listening to it.
    #[error("{0}")]
    Flooding(String),
}

impl From<ConfigError> for Trouble {
    fn from(error: ConfigError) -> Self {
        Lasting(error.to_string())
    }
}

impl Trouble {
    /// Whether a person must change something.
    pub(super) fn is_lasting(&self) -> bool {
        matches!(self, Lasting(_))
    }

    /// Whether what comes in is too large.
    pub(super) fn is_flooding(&self) -> bool {
        matches!(self, Flooding(_))
    }

    /// Why no connection came about.
    pub(super) fn connecting(error: &ConnectionError, config: &Config) -> Self {
        let mqtt = &config.mqtt;
        let port = mqtt.port;
        if let Some(error) = cause::<rustls::Error>(error) {
            return tls(error, config);
        }
        match error {
            ConnectionError::ConnectionRefused(code) => refused(*code, config),
            ConnectionError::NetworkTimeout | ConnectionError::FlushTimeout => {
                Passing(format!("no answer within {CONNECT_WITHIN_S} s"))
            }
            ConnectionError::Io(error) if error.raw_os_error().is_none() => {
                Passing(format!("no address for mqtt.host = '{}': {error}", mqtt.host))
            }
            ConnectionError::Io(error) => Passing(error.to_string()),
            ConnectionError::Tls(TlsError::Io(error)) if hung_up(error) => Passing(format!(
                "the broker hung up at once: if port {port} is the one without TLS, change mqtt.port"
            )),
            error if has_hung_up(error) => Passing(match mqtt.tls {
                false => format!(
                    "the broker hung up before it answered: if port {port} is the one with TLS, set mqtt.tls = true"
                ),
                true => "the broker hung up before it answered: it may want mqtt.certificate_file"
                    .to_owned(),
            }),
            error if mqtt.tls => {
                Passing(format!("what answers at port {port} does not speak MQTT: {error}"))
            }
            error => Passing(format!(
                "what answers at port {port} does not speak MQTT, or it wants mqtt.tls = true: {error}"
            )),
        }
    }

    /// Why a connection that stood does so no longer.
    pub(super) fn lost(error: &ConnectionError, config: &Config) -> Self {
        let client_id = config.mqtt.client_id();
        if let Some(PacketError::PayloadSizeLimitExceeded(bytes)) = cause::<PacketError>(error) {
            let topic = config.mqtt.topic();
            return Flooding(format!(
                "a message of {bytes} bytes on {topic}/+/set: if it is retained, take it back with mosquitto_pub --retain --null-message --topic {topic}/…/set"
            ));
        }
        Passing(match error {
            error if has_hung_up(error) => format!(
                "the broker closed the connection: if it does so again and again, another client has mqtt.client_id = '{client_id}' too"
            ),
            ConnectionError::MqttState(StateError::AwaitPingResp) => {
                "the broker no longer answers".to_owned()
            }
            error => error.to_string(),
        })
    }
}

/// Whether the broker refuses to send what was subscribed to.
pub(super) fn is_refused(subscription: &SubAck) -> bool {
    subscription.return_codes.contains(&SubscribeReasonCode::Failure)
}

fn refused(code: ConnectReturnCode, config: &Config) -> Trouble {
    let mqtt = &config.mqtt;
    let user = &mqtt.username;
    match code {
        ConnectReturnCode::ServiceUnavailable => {
            Passing("the broker says that it is not available".to_owned())
        }
        ConnectReturnCode::BadClientId => {
            Lasting(format!("the broker refuses mqtt.client_id = '{}'", mqtt.client_id()))
        }
        ConnectReturnCode::BadUserNamePassword | ConnectReturnCode::NotAuthorized
            if user.is_empty() =>
        {
            Lasting("the broker wants a login: set mqtt.username and mqtt.password_file".to_owned())
        }
        ConnectReturnCode::BadUserNamePassword => {
            Lasting(format!("mqtt.username = '{user}' or its password is wrong"))
        }
        ConnectReturnCode::NotAuthorized => Lasting(format!(
            "not authorised: mqtt.username = '{user}' or its password is wrong, or an access list forbids it"
        )),
        ConnectReturnCode::RefusedProtocolVersion | ConnectReturnCode::Success => {
            Lasting("the broker does not speak MQTT 3.1.1".to_owned())
        }
    }
}

fn tls(error: &rustls::Error, config: &Config) -> Trouble {
    let mqtt = &config.mqtt;
    let (host, port) = (&mqtt.host, mqtt.port);
    Lasting(match error {
        rustls::Error::InvalidCertificate(problem) => match problem {
            CertificateError::UnknownIssuer | CertificateError::BadSignature => {
                "the broker's certificate is signed by an authority that is not known here: give it in mqtt.ca_file".to_owned()
            }
            CertificateError::NotValidForNameContext { presented, .. } => {
                let names: Vec<_> = presented.iter().map(|name| plain(name)).collect();
                let names =
                    if names.is_empty() { "nobody".to_owned() } else { names.join(", ") };
                format!("the broker's certificate is for {names}, and not for mqtt.host = '{host}'")
            }
            CertificateError::NotValidForName => {
                format!("the broker's certificate is not for mqtt.host = '{host}'")
            }
            CertificateError::Expired | CertificateError::ExpiredContext { .. } => {
                "the broker's certificate has expired, or this device's clock is wrong".to_owned()
            }
            CertificateError::NotValidYet | CertificateError::NotValidYetContext { .. } => {
                "the broker's certificate is not valid yet, or this device's clock is wrong"
                    .to_owned()
            }
            problem => format!("the broker's certificate is not accepted: {problem}"),
        },
        rustls::Error::AlertReceived(alert) => match alert {
            AlertDescription::CertificateRequired | AlertDescription::HandshakeFailure
                if mqtt.certificate_file.as_os_str().is_empty() =>
            {
                "the broker wants a certificate of this device: set mqtt.certificate_file and mqtt.key_file".to_owned()
            }
            AlertDescription::CertificateRequired
            | AlertDescription::UnknownCA
            | AlertDescription::BadCertificate
            | AlertDescription::UnsupportedCertificate
            | AlertDescription::CertificateRevoked
            | AlertDescription::CertificateExpired
            | AlertDescription::CertificateUnknown
            | AlertDescription::AccessDenied
            | AlertDescription::DecryptError => {
                format!("the broker refuses the certificate in mqtt.certificate_file: {alert:?}")
            }
            alert => format!("the broker refuses encryption: {alert:?}"),
        },
        rustls::Error::InvalidMessage(InvalidMessage::InvalidContentType) => {
            format!("what answers at port {port} does not speak TLS: change mqtt.port or mqtt.tls")
        }
        error => return Passing(format!("TLS: {error}")),
    })
}

/// The name in `DnsName("NAME")`, as rustls writes names.
fn plain(name: &str) -> &str {
    let inner = name.split_once('(').and_then(|(_, rest)| rest.strip_suffix(')'));
    inner.unwrap_or(name).trim_matches('"')
}

/// The first `E` among an error and its causes. An [`io::Error`] hides the one that it wraps.
fn cause<'a, E: Error + 'static>(error: &'a (dyn Error + 'static)) -> Option<&'a E> {
    let inner = match error.downcast_ref::<io::Error>().and_then(io::Error::get_ref) {
        Some(wrapped) => Some(wrapped as &(dyn Error + 'static)),
        None => error.source(),
    };
    error.downcast_ref().or_else(|| inner.and_then(cause))
}

fn has_hung_up(error: &ConnectionError) -> bool {
    matches!(error, ConnectionError::MqttState(StateError::ConnectionAborted))
        || cause::<io::Error>(error).is_some_and(hung_up)
}

fn hung_up(error: &io::Error) -> bool {
    matches!(
        error.kind(),
        io::ErrorKind::UnexpectedEof
            | io::ErrorKind::ConnectionReset
            | io::ErrorKind::ConnectionAborted
            | io::ErrorKind::BrokenPipe
    )
}
