//! Headless Chromium, controlled by the DevTools protocol.
//!
//! The protocol uses two pipes (`--remote-debugging-pipe`): JSON messages that end with a NUL. It needs no port and no
//! WebSocket, and ends with the browser.

use std::{env, process::Stdio, sync::Arc, time::Duration};

use serde_json::{Value, json};
use tokio::{
    io::{AsyncBufReadExt, AsyncWriteExt, BufReader},
    process::{Child, ChildStdin, ChildStdout, Command},
    sync::Mutex,
    time::timeout,
};

use super::{dir::Dir, eventually, example::PATIENCE};

/// Possible names of the program.
const NAMES: [&str; 4] = ["chromium", "chromium-browser", "google-chrome", "google-chrome-stable"];

/// A browser with an empty profile. Killed when dropped, and the profile is deleted.
pub struct Browser {
    wire: Arc<Mutex<Wire>>,
    child: Child,
    _dir: Dir,
}

struct Wire {
    to: ChildStdin,
    from: BufReader<ChildStdout>,
    last: u64,
}

/// The reply of the browser.
type Answer = Result<Value, Value>;

impl Browser {
    /// All names that end in `.test` resolve to this machine, and certificates with a key of this SHA-256 (base64) are accepted.
    pub async fn start(trusted_key: Option<&str>) -> Self {
        let dir = Dir::new();
        let mut command = Command::new("sh");
        // Pipes 3 and 4 are those of the protocol.
        command.args(["-c", r#"exec "$0" "$@" 3<&0 4>&1 </dev/null >/dev/null 2>&1"#, &binary()]);
        command.args([
            "--headless",
            "--no-sandbox",
            "--disable-gpu",
            "--disable-quic",
            "--no-first-run",
            "--disable-background-networking",
            "--disable-component-update",
            "--disable-sync",
            "--disable-dev-shm-usage",
            "--site-per-process",
            // As in current browsers: no cross-site cookies unless they are partitioned.
            "--test-third-party-cookie-phaseout",
            "--host-resolver-rules=MAP *.test 127.0.0.1",
            "--remote-debugging-pipe",
        ]);
        command.arg(format!("--user-data-dir={}", dir.display()));
        command.args(trusted_key.map(|key| format!("--ignore-certificate-errors-spki-list={key}")));
        command.stdin(Stdio::piped()).stdout(Stdio::piped()).kill_on_drop(true);
        let mut child = command.spawn().unwrap();
        let (to, from) = (child.stdin.take().unwrap(), child.stdout.take().unwrap());
        let wire = Wire { to, from: BufReader::new(from), last: 0 };
        Self { wire: Arc::new(Mutex::new(wire)), child, _dir: dir }
    }

    /// A new tab.
    pub async fn tab(&self) -> Tab {
        let target = self.call("Target.createTarget", json!({ "url": "about:blank" })).await;
        self.attach(target["targetId"].as_str().unwrap()).await
    }

    /// The iframe whose address begins like this, once it exists.
    pub async fn frame(&self, url: &str) -> Tab {
        let mut found = None;
        eventually("an iframe of another site", async || {
            let targets = self.call("Target.getTargets", json!({})).await;
            let mut targets = targets["targetInfos"].as_array().unwrap().iter();
            let frame =
                targets.find(|target| target["type"] == "iframe" && target["url"].as_str().unwrap().starts_with(url));
            found = frame.map(|frame| frame["targetId"].as_str().unwrap().to_owned());
            found.is_some()
        })
        .await;
        self.attach(&found.unwrap()).await
    }

    async fn attach(&self, target: &str) -> Tab {
        let attached = self.call("Target.attachToTarget", json!({ "targetId": target, "flatten": true })).await;
        Tab { wire: self.wire.clone(), session: attached["sessionId"].as_str().unwrap().to_owned() }
    }

    /// All stored cookies.
    pub async fn cookies(&self) -> Vec<Value> {
        self.call("Storage.getCookies", json!({})).await["cookies"].as_array().unwrap().clone()
    }

    async fn call(&self, method: &str, params: Value) -> Value {
        self.wire.lock().await.call(None, method, params).await.unwrap()
    }

    /// Closes the browser, and returns when it has exited.
    pub async fn close(mut self) {
        self.call("Browser.close", json!({})).await;
        timeout(PATIENCE, self.child.wait()).await.expect("it ends").unwrap();
    }
}

impl Drop for Browser {
    fn drop(&mut self) {
        let _ = self.child.start_kill();
        // Pending writes would outlive the directory.
        for _ in 0..500 {
            if !matches!(self.child.try_wait(), Ok(None)) {
                break;
            }
            std::thread::sleep(Duration::from_millis(10));
        }
    }
}

fn binary() -> String {
    let named = env::var("CHROMIUM_BIN").ok();
    let on_path = |name: &&str| env::split_paths(&env::var_os("PATH").unwrap()).any(|dir| dir.join(name).is_file());
    let found = named.or_else(|| NAMES.iter().find(|name| on_path(name)).map(|name| (*name).to_owned()));
    found.expect("chromium is missing: install it, or let CHROMIUM_BIN name it")
}

impl Wire {
    /// Events between replies are ignored.
    async fn call(&mut self, session: Option<&str>, method: &str, params: Value) -> Answer {
        self.last += 1;
        let mut message = json!({ "id": self.last, "method": method, "params": params });
        if let Some(session) = session {
            message["sessionId"] = session.into();
        }
        let mut text = message.to_string().into_bytes();
        text.push(0);
        self.to.write_all(&text).await.expect("the browser listens");
        loop {
            let mut answer = Vec::new();
            timeout(PATIENCE, self.from.read_until(0, &mut answer)).await.expect("the browser answers").unwrap();
            assert_eq!(answer.pop(), Some(0), "the browser has ended");
            let mut answer: Value = serde_json::from_slice(&answer).unwrap();
            if answer["id"] == self.last {
                return match answer.get("error") {
                    Some(error) => Err(error.clone()),
                    None => Ok(answer["result"].take()),
                };
            }
        }
    }
}

/// Whether the queried page was replaced by another before it replied.
fn is_gone(error: &Value) -> bool {
    let told = error["message"].as_str().unwrap_or_default();
    ["Inspected target navigated or closed", "Execution context was destroyed", "Cannot find default execution context"]
        .iter()
        .any(|gone| told.contains(gone))
}

/// A tab, or a cross-site iframe.
pub struct Tab {
    wire: Arc<Mutex<Wire>>,
    session: String,
}

impl Tab {
    pub async fn try_call(&self, method: &str, params: Value) -> Answer {
        self.wire.lock().await.call(Some(&self.session), method, params).await
    }

    pub async fn call(&self, method: &str, params: Value) -> Value {
        self.try_call(method, params).await.unwrap_or_else(|error| panic!("{method}: {error}"))
    }

    /// Navigates. Returns when there is a response.
    pub async fn goto(&self, url: &str) {
        let navigated = self.call("Page.navigate", json!({ "url": url })).await;
        assert!(navigated.get("errorText").is_none(), "{url}: {navigated}");
        eventually("the page is loaded", async || {
            self.try_eval("document.readyState + ' ' + location.href").await.is_ok_and(|state| {
                let state = state.as_str().unwrap_or_default();
                state.starts_with("complete ") && !state.contains("about:blank")
            })
        })
        .await;
    }

    /// The value of a JavaScript expression in the page, even if the page's own scripts are disabled. If the tab navigates, the expression
    /// is evaluated in the new page.
    pub async fn eval(&self, expression: &str) -> Value {
        let mut answer = Ok(Value::Null);
        eventually("a page answers", async || {
            answer = self.try_eval(expression).await;
            !answer.as_ref().is_err_and(is_gone)
        })
        .await;
        answer.unwrap_or_else(|error| panic!("{expression}: {error}"))
    }

    async fn try_eval(&self, expression: &str) -> Answer {
        let params = json!({ "expression": expression, "returnByValue": true, "awaitPromise": true });
        let mut answer = self.try_call("Runtime.evaluate", params).await?;
        match answer.get("exceptionDetails") {
            Some(details) => Err(details.clone()),
            None => Ok(answer["result"]["value"].take()),
        }
    }

    /// The visible text, or none while the page loads.
    pub async fn text(&self) -> String {
        self.try_eval("document.readyState === 'complete' ? document.body.innerText : ''")
            .await
            .ok()
            .and_then(|text| Some(text.as_str()?.to_owned()))
            .unwrap_or_default()
    }

    /// Waits until the visible text contains this.
    #[track_caller]
    pub fn shows(&self, text: &str) -> impl Future<Output = ()> {
        let caller = std::panic::Location::caller();
        async move {
            let shown = async {
                while !self.text().await.contains(text) {
                    tokio::time::sleep(Duration::from_millis(20)).await;
                }
            };
            if timeout(PATIENCE, shown).await.is_err() {
                panic!("{caller}: never shown: {text:?}; but: {}", self.text().await);
            }
        }
    }

    /// Clicks into the middle of the first element with this selector.
    pub async fn click(&self, selector: &str) {
        let place = format!(
            "(() => {{ const e = document.querySelector({}); e.scrollIntoView({{ block: 'center' }}); \
             const r = e.getBoundingClientRect(); return [r.x + r.width / 2, r.y + r.height / 2] }})()",
            json!(selector)
        );
        let place = self.eval(&place).await;
        for kind in ["mousePressed", "mouseReleased"] {
            let event = json!({ "type": kind, "x": place[0], "y": place[1], "button": "left", "clickCount": 1 });
            match self.try_call("Input.dispatchMouseEvent", event).await {
                // It was a link, and the page has changed already.
                Err(error) if kind == "mouseReleased" && is_gone(&error) => {}
                answer => drop(answer.unwrap_or_else(|error| panic!("{selector}: {kind}: {error}"))),
            }
        }
    }

    /// Replaces the content of a field.
    pub async fn fill(&self, selector: &str, text: &str) {
        self.click(selector).await;
        self.eval(&format!("document.querySelector({}).select()", json!(selector))).await;
        self.call("Input.insertText", json!({ "text": text })).await;
    }

    /// Disables the scripts of pages from now on.
    pub async fn without_scripts(&self) {
        self.call("Emulation.setScriptExecutionDisabled", json!({ "value": true })).await;
    }
}
