//! A control plane on a temporary directory, with stand-ins for the programs that it starts.

use std::io::{BufRead, BufReader, Write};
use std::os::unix::fs::PermissionsExt;
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use farshore_api::identity::{Certificate, Token};
use farshore_api::{ErrorBody, paths};
use farshore_control::control::Control;
use farshore_control::settings::{QemuAccel, Settings};
use rcgen::{CertificateParams, KeyPair};
use reqwest::{Client, ClientBuilder, Identity, Method};
use rustix::process::{Pid, Signal, kill_process};
use serde::de::DeserializeOwned;
use serde_json::{Value, json};
use uuid::Uuid;

/// How long anything in a test may take.
pub(crate) const DEADLINE: Duration = Duration::from_secs(60);

/// Stands for `farshore-node export`: writes the ready file and goes on until it is ended.
pub(crate) const EXPORT: &str = r#"#!/bin/sh
while [ $# -gt 0 ]; do
    case "$1" in
        --ready-file) ready="$2"; shift ;;
        --overlay) overlay="$2"; shift ;;
        --listen) listen="$2"; shift ;;
    esac
    shift
done
[ -e "$overlay" ] || echo data >"$overlay"
printf '{"nbd_uri":"nbd+%s"}' "$listen" >"$ready"
while :; do sleep 0.05; done
"#;

/// Stands for it too, and really serves `DIR/disk.raw`, which lies beside it.
pub(crate) const QEMU_NBD_EXPORT: &str = r#"#!/bin/sh
disk="$(dirname "$0")/disk.raw"
while [ $# -gt 0 ]; do
    case "$1" in
        --ready-file) ready="$2"; shift ;;
        --overlay) overlay="$2"; shift ;;
        --listen) socket="${2#unix:}"; shift ;;
    esac
    shift
done
: >>"$overlay"
(
    while [ ! -S "$socket" ]; do sleep 0.05; done
    printf '{"nbd_uri":"nbd+unix:///?socket=%s"}' "$socket" >"$ready"
) &
exec qemu-nbd --format raw --socket "$socket" --persistent --snapshot "$disk"
"#;

/// Stands for an export that cannot serve.
pub(crate) const FAILING_EXPORT: &str = "#!/bin/sh\necho 'no such vault' >&2\nexit 66\n";

/// Stands for an export that never becomes ready.
pub(crate) const SLOW_EXPORT: &str = "#!/bin/sh\nwhile :; do sleep 0.05; done\n";

/// Stands for QEMU: a machine that has said something, and runs until the file `DIR/halt` appears
/// beside its program. Its control socket is served by [`serve_control_sockets`].
pub(crate) const QEMU: &str = r#"#!/bin/sh
case "$*" in *"-qmp stdio") exit 0 ;; esac
dir="$(dirname "$0")"
echo "$@" >"$dir/qemu.arguments"
while [ $# -gt 0 ]; do
    case "$1" in
        -serial) console="${2#file:}"; shift ;;
        -qmp) control="${2#unix:}"; control="${control%%,server*}"; shift ;;
    esac
    shift
done
echo "hello" >"$console"
case "$control" in /*) ;; *) control="$PWD/$control" ;; esac
echo "$control" >"$dir/control.$$.new"
mv "$dir/control.$$.new" "$dir/control.$$"
while [ ! -e "$dir/halt" ]; do sleep 0.05; done
"#;

/// Serves the control socket of every stand-in for QEMU whose program is in `bin`. A machine is in the
/// state that the file `status` there says, `running` without it; told to go on, it runs, unless there
/// is a file `full`.
fn serve_control_sockets(bin: PathBuf) {
    std::thread::spawn(move || {
        let mut served = std::collections::HashSet::new();
        while let Ok(entries) = std::fs::read_dir(&bin) {
            for path in entries.flatten().map(|entry| entry.path()) {
                let name = path.file_name().unwrap().to_string_lossy().into_owned();
                let is_new = name.starts_with("control.") && !name.ends_with(".new");
                if is_new && served.insert(name) {
                    let socket = PathBuf::from(std::fs::read_to_string(&path).unwrap().trim());
                    std::fs::remove_file(&socket).ok();
                    let listener = UnixListener::bind(&socket).unwrap();
                    let bin = bin.clone();
                    std::thread::spawn(move || {
                        for stream in listener.incoming().flatten() {
                            serve_control(stream, &bin).ok();
                        }
                    });
                }
            }
            std::thread::sleep(Duration::from_millis(10));
        }
    });
}

fn serve_control(mut stream: UnixStream, bin: &Path) -> std::io::Result<()> {
    writeln!(stream, "{{\"QMP\": {{}}}}")?;
    for line in BufReader::new(stream.try_clone()?).lines() {
        let asked: Value = serde_json::from_str(&line?)?;
        let status = std::fs::read_to_string(bin.join("status"));
        let status = status.unwrap_or_else(|_| "running".into());
        let answer = match asked["execute"].as_str().unwrap() {
            "query-status" => json!({ "status": status }),
            "query-block" => json!([{ "io-status": "nospace" }]),
            "query-cpus-fast" => json!([]),
            "cont" => {
                if !bin.join("full").exists() {
                    std::fs::remove_file(bin.join("status")).ok();
                }
                json!({})
            }
            _ => json!({}),
        };
        writeln!(stream, "{}", json!({ "return": answer }))?;
    }
    Ok(())
}

/// The machine `web` and those who protect it.
pub(crate) struct Protected {
    pub(crate) agent: Client,
    pub(crate) node: Client,
    pub(crate) volume: Value,
    pub(crate) point: Uuid,
}

/// What a report says of a committed point.
pub(crate) fn point_report(point: Uuid, volume: &Value, seq: u64) -> Value {
    json!({ "point": point, "volume": volume, "seq": seq, "kind": "crash",
        "time_unix_ms": 1_700_000_000_000_u64 + seq })
}

/// A control plane and what it works with.
pub(crate) struct Site {
    pub(crate) dir: tempfile::TempDir,
    pub(crate) control: Option<Control>,
    client: Client,
    change: fn(&mut Settings),
}

impl Site {
    /// Starts a control plane whose exports are served by the script `export`.
    pub(crate) async fn start(export: &str) -> Self {
        Self::start_with(export, |_| ()).await
    }

    /// The same with other settings.
    pub(crate) async fn start_with(export: &str, change: fn(&mut Settings)) -> Self {
        rustls::crypto::aws_lc_rs::default_provider().install_default().ok();
        let dir = tempfile::tempdir().unwrap();
        std::fs::create_dir(dir.path().join("bin")).unwrap();
        std::fs::write(dir.path().join("key"), "k").unwrap();
        std::fs::write(dir.path().join("firmware"), "f").unwrap();
        script(&dir.path().join("bin/farshore-node"), export);
        script(&dir.path().join("bin/qemu"), QEMU);
        serve_control_sockets(dir.path().join("bin"));
        let control = Control::start(settings(dir.path(), change)).await.unwrap();
        let client = trusting(dir.path()).build().unwrap();
        Self { dir, control: Some(control), client, change }
    }

    /// Stops the control plane, unless it is stopped, and starts it again on the same directory.
    pub(crate) async fn restart(&mut self) {
        if let Some(control) = self.control.take() {
            control.stop().await;
        }
        let settings = settings(self.dir.path(), self.change);
        self.control = Some(Control::start(settings).await.unwrap());
        // Connections of the former one are gone.
        self.client = trusting(self.dir.path()).build().unwrap();
    }

    pub(crate) fn data(&self) -> PathBuf {
        self.dir.path().join("data")
    }

    pub(crate) fn url(&self, path: &str) -> String {
        format!("https://{}{path}", self.control.as_ref().unwrap().address())
    }

    fn operator_token(&self) -> String {
        std::fs::read_to_string(self.data().join("operator.token")).unwrap().trim().to_owned()
    }

    /// Calls as operator; returns status and body.
    pub(crate) async fn call(
        &self,
        method: Method,
        path: &str,
        body: Option<Value>,
    ) -> (u16, Value) {
        let mut request =
            self.client.request(method, self.url(path)).bearer_auth(self.operator_token());
        if let Some(body) = body {
            request = request.json(&body);
        }
        let reply = request.send().await.unwrap();
        (reply.status().as_u16(), reply.json().await.unwrap_or(Value::Null))
    }

    pub(crate) async fn get<T: DeserializeOwned>(&self, path: &str) -> T {
        let (status, body) = self.call(Method::GET, path, None).await;
        assert_eq!(status, 200, "GET {path}: {body}");
        serde_json::from_value(body).unwrap()
    }

    pub(crate) async fn post<T: DeserializeOwned>(&self, path: &str, body: Value) -> T {
        let (status, answer) = self.call(Method::POST, path, Some(body)).await;
        assert_eq!(status, 200, "POST {path}: {answer}");
        serde_json::from_value(answer).unwrap()
    }

    pub(crate) async fn refused(
        &self,
        method: Method,
        path: &str,
        body: Option<Value>,
    ) -> ErrorBody {
        let (status, body) = self.call(method, path, body).await;
        assert!(status >= 400, "{path}: {body}");
        serde_json::from_value(body).unwrap()
    }

    /// Enrols a new identity and returns it with a client that presents its certificate.
    pub(crate) async fn enrol(&self, role: &str) -> (Certificate, Client) {
        let token: Token = self.post(paths::TOKENS, json!({ "role": role })).await;
        let key = KeyPair::generate().unwrap();
        let csr = CertificateParams::default().serialize_request(&key).unwrap().pem().unwrap();
        let body = json!({ "token": token.token, "csr_pem": csr });
        let reply = self.client.post(self.url(paths::ENROL)).json(&body).send().await.unwrap();
        assert_eq!(reply.status(), 200);
        let issued: Certificate = reply.json().await.unwrap();
        let client = trusting(self.dir.path()).identity(identity(&issued.certificate_pem, &key));
        (issued, client.build().unwrap())
    }

    /// Registers a node and an agent, protects the machine `web` and commits one point of it.
    pub(crate) async fn protect(&self) -> Uuid {
        self.protect_with_peers().await.point
    }

    /// The same, with those who protect it.
    pub(crate) async fn protect_with_peers(&self) -> Protected {
        let (_, node) = self.enrol("node").await;
        let body = json!({ "address": "127.0.0.1:9443", "shards": 1, "version": "0" });
        self.send(&node, paths::NODE_REGISTER, body).await;
        let (_, agent) = self.enrol("agent").await;
        let body = json!({ "hostname": "alpha", "version": "0", "local": true });
        self.send(&agent, paths::AGENT_REGISTER, body).await;
        let body = json!({ "name": "web", "disk": "/disk", "capture": "nbd" });
        let _: Value = self.post(paths::MACHINES, body).await;
        let volume = self.assigned(&agent).await;
        let point = Uuid::now_v7();
        let body = json!({ "volumes": [{ "volume": volume, "epoch": 1, "state": "protected" }],
            "points": [point_report(point, &volume, 5)] });
        self.send(&agent, paths::AGENT_REPORT, body).await;
        Protected { agent, node, volume, point }
    }

    /// The agent's volume, once it is placed.
    async fn assigned(&self, agent: &Client) -> Value {
        let deadline = Instant::now() + DEADLINE;
        let mut after = String::new();
        loop {
            let path = format!("{}?wait_ms=5000{after}", paths::AGENT_ASSIGNMENTS);
            let reply = agent.get(self.url(&path)).send().await.unwrap();
            let body: Value = reply.json().await.unwrap();
            if let Some(volume) = body["volumes"].get(0) {
                return volume["volume"].clone();
            }
            after = format!("&after={}", body["version"]);
            assert!(Instant::now() < deadline, "not placed: {body}");
        }
    }

    /// Calls as the agent or node of `client`.
    pub(crate) async fn send(&self, client: &Client, path: &str, body: Value) -> Value {
        let reply = client.post(self.url(path)).json(&body).send().await.unwrap();
        let status = reply.status();
        let text = reply.text().await.unwrap();
        assert_eq!(status, 200, "{path}: {text}");
        serde_json::from_str(&text).unwrap()
    }

    /// The volumes that the agent or node of `client` is to replicate.
    pub(crate) async fn volumes(&self, client: &Client, path: &str) -> Value {
        let reply = client.get(self.url(path)).send().await.unwrap();
        reply.json::<Value>().await.unwrap()["volumes"].take()
    }
}

impl Drop for Site {
    /// Ends what a failed test left running: processes with the directory in their command line.
    fn drop(&mut self) {
        let dir = self.dir.path().as_os_str().as_encoded_bytes();
        for entry in std::fs::read_dir("/proc").into_iter().flatten().flatten() {
            let line = std::fs::read(entry.path().join("cmdline")).unwrap_or_default();
            let pid = entry.file_name().to_str().and_then(|name| name.parse().ok());
            let is_ours = line.windows(dir.len()).any(|window| window == dir);
            if let (true, Some(pid)) = (is_ours, pid.and_then(Pid::from_raw)) {
                kill_process(pid, Signal::KILL).ok();
            }
        }
    }
}

/// Writes a program.
pub(crate) fn script(path: &Path, text: &str) {
    let temporary = path.with_extension("new");
    std::fs::write(&temporary, text).unwrap();
    std::fs::set_permissions(&temporary, std::fs::Permissions::from_mode(0o755)).unwrap();
    std::fs::rename(&temporary, path).unwrap();
}

pub(crate) fn identity(certificate_pem: &str, key: &KeyPair) -> Identity {
    Identity::from_pem(format!("{certificate_pem}{}", key.serialize_pem()).as_bytes()).unwrap()
}

/// A client that trusts the CA in `dir/data` and nothing else.
pub(crate) fn trusting(dir: &Path) -> ClientBuilder {
    let ca = std::fs::read(dir.join("data/ca.pem")).unwrap();
    let ca = reqwest::Certificate::from_pem(&ca).unwrap();
    ClientBuilder::new().tls_certs_only([ca]).timeout(DEADLINE)
}

fn settings(dir: &Path, change: fn(&mut Settings)) -> Settings {
    let mut settings = Settings {
        data: dir.join("data"),
        listen: "127.0.0.1:0".parse().unwrap(),
        vault: "file:///vault".into(),
        key_file: dir.join("key"),
        node_program: dir.join("bin/farshore-node"),
        qemu_program: dir.join("bin/qemu"),
        qemu_accel: QemuAccel::Tcg,
        guest_user: None,
        firmware_dir: Some(dir.into()),
        node_lost_after_seconds: farshore_api::limits::NODE_LOST_AFTER_SECONDS_DEFAULT,
    };
    change(&mut settings);
    settings
}
