//! A running `redis-server`: a server, a cluster node, or a Sentinel.

use std::{
    env,
    fs::{self, File},
    path::{Path, PathBuf},
    process::{Child, Command},
    sync::{
        Mutex,
        atomic::{AtomicBool, Ordering},
    },
};

/// Killed when dropped.
pub struct Process {
    binary: String,
    child: Mutex<Child>,
    paused: AtomicBool,
    log: PathBuf,
}

/// The binary under test.
pub fn binary() -> String {
    env::var("REDIS_SERVER_BIN").unwrap_or_else(|_| "redis-server".into())
}

impl Process {
    /// Runs the binary of `REDIS_SERVER_BIN`, or `redis-server` of the path. Its output is in `dir/log`.
    pub fn start(dir: &Path, args: &[String]) -> Self {
        let binary = binary();
        let log = dir.join("log");
        let file = File::create(&log).unwrap();
        let child = Command::new(&binary)
            .args(args)
            .stdout(file.try_clone().unwrap())
            .stderr(file)
            .spawn()
            .unwrap_or_else(|error| panic!("{binary}: {error}"));
        Self { binary, child: Mutex::new(child), paused: AtomicBool::new(false), log }
    }

    /// Fails with the reason if it has exited by itself.
    pub fn assert_runs(&self) {
        if let Some(status) = self.child.lock().unwrap().try_wait().unwrap() {
            let log = fs::read_to_string(&self.log).unwrap_or_default();
            let no_tls = log.contains("'tls-") && log.contains("Bad directive");
            assert!(!no_tls, "{} was built without TLS: let REDIS_SERVER_BIN name one that has it", self.binary);
            panic!("{} ended with {status}:\n{log}", self.binary);
        }
    }

    /// SIGSTOP: it hangs. Connections stay open, and the kernel accepts new ones.
    pub fn pause(&self) {
        self.signal("-STOP");
        self.paused.store(true, Ordering::Relaxed);
    }

    /// SIGCONT.
    pub fn resume(&self) {
        self.signal("-CONT");
        self.paused.store(false, Ordering::Relaxed);
    }

    pub fn is_paused(&self) -> bool {
        self.paused.load(Ordering::Relaxed)
    }

    fn signal(&self, signal: &str) {
        let pid = self.child.lock().unwrap().id().to_string();
        assert!(Command::new("kill").args([signal, &pid]).status().unwrap().success());
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        let child = self.child.get_mut().unwrap_or_else(|poisoned| poisoned.into_inner());
        let _ = child.kill(); // SIGKILL, which also works when it is paused
        let _ = child.wait();
    }
}
