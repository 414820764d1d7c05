//! A Redis Cluster with failing nodes and moving slots.

use std::ops::RangeInclusive;

use super::{
    eventually,
    redis_server::{Reached, RedisServer, text},
};
use redis::Value;

const MASTERS: usize = 3;
const SLOTS: u16 = 16_384;

/// Six nodes: at first 0, 1 and 2 are masters of a third of the slots each, and 3, 4 and 5 are their replicas in that
/// order. Stopped when dropped.
///
/// A node is identified by its number, whatever its role. Two nodes with the same slots stay partners.
pub struct Cluster {
    pub nodes: Vec<RedisServer>,
    password: Option<String>,
}

impl Cluster {
    pub async fn start() -> Self {
        Self::start_with(&[]).await
    }

    /// With more arguments for the nodes: `&["--appendonly", "yes"]`, so that a restarted node still has its
    /// keys. Returns when every node sees a complete cluster.
    pub async fn start_with(args: &[&str]) -> Self {
        Self::start_reached(&Reached::Directly, args).await
    }

    pub async fn start_reached(how: &Reached<'_>, args: &[&str]) -> Self {
        let mut all = vec!["--cluster-enabled", "yes", "--cluster-config-file", "nodes.conf"];
        all.extend(["--cluster-node-timeout", "1500", "--repl-diskless-sync-delay", "0"]);
        // A replica takes over however old its data is, and keeps its slots.
        all.extend(["--cluster-replica-validity-factor", "0", "--cluster-migration-barrier", "9"]);
        all.extend(args);
        let password = args.iter().position(|arg| *arg == "--requirepass").map(|place| args[place + 1].to_owned());
        if let Some(password) = &password {
            all.extend(["--masterauth", password]);
        }
        let mut nodes: Vec<_> = (0..2 * MASTERS).map(|_| RedisServer::stopped_with(&all)).collect();
        for node in &mut nodes {
            node.be_reached(how).await;
            node.launch();
        }
        for node in &nodes {
            node.answers().await;
        }
        let cluster = Self { nodes, password };
        cluster.form().await;
        cluster
    }

    async fn form(&self) {
        for (i, node) in self.nodes.iter().enumerate() {
            node.command(&format!("CLUSTER SET-CONFIG-EPOCH {}", i + 1)).await;
        }
        for (i, node) in self.nodes.iter().enumerate() {
            for other in &self.nodes[i + 1..] {
                node.command(&format!("CLUSTER MEET 127.0.0.1 {}", other.meeting_port())).await;
            }
        }
        for (i, node) in self.nodes[..MASTERS].iter().enumerate() {
            let share = SLOTS / MASTERS as u16 + 1;
            let (first, last) = (i as u16 * share, (SLOTS - 1).min((i as u16 + 1) * share - 1));
            if node.try_command(&format!("CLUSTER ADDSLOTSRANGE {first} {last}")).await.is_err() {
                // Before Redis 7.
                let slots: Vec<_> = (first..=last).map(|slot| slot.to_string()).collect();
                node.command(&format!("CLUSTER ADDSLOTS {}", slots.join(" "))).await;
            }
        }
        for (i, replica) in self.nodes.iter().enumerate().skip(MASTERS) {
            let master = text(&self.nodes[i - MASTERS].command("CLUSTER MYID").await);
            // As soon as it knows its master.
            let replicate = async || replica.try_command(&format!("CLUSTER REPLICATE {master}")).await.is_ok();
            eventually("the node replicates", replicate).await;
        }
        self.settled().await;
    }

    /// The URLs of all nodes.
    pub fn urls(&self) -> Vec<String> {
        self.nodes.iter().map(RedisServer::url).collect()
    }

    /// From now on, until it is started again, no replica takes over: on a busy machine a node seems to be down sooner than a test
    /// wants.
    pub async fn is_patient(&self) {
        for node in &self.nodes {
            node.command("CONFIG SET cluster-node-timeout 600000").await;
        }
    }

    /// Waits until all running nodes agree on the masters and see all slots served, and replicas are in sync with running
    /// masters.
    pub async fn settled(&self) {
        eventually("the cluster is whole", async || self.is_settled().await).await;
    }

    /// The other node with the same slots.
    pub fn partner(&self, node: usize) -> usize {
        (node + MASTERS) % self.nodes.len()
    }

    /// The slot of `key`, as Redis computes it.
    pub async fn slot(&self, key: &str) -> u16 {
        text(&self.up().command(&format!("CLUSTER KEYSLOT {key}")).await).parse().unwrap()
    }

    /// The master of `slot`: of all that running nodes name, the one of the latest epoch.
    pub async fn node_of_slot(&self, slot: u16) -> usize {
        let mut owners = Vec::new();
        for node in self.nodes.iter().filter(|node| node.is_up()) {
            owners.extend(view(node).await.into_iter().filter(|seen| seen.serves(slot)));
        }
        let owner = owners.into_iter().max_by_key(|seen| seen.epoch).expect("somebody serves the slot");
        self.number(owner.port)
    }

    /// The master of the slot of `key`.
    pub async fn node_of_key(&self, key: &str) -> usize {
        self.node_of_slot(self.slot(key).await).await
    }

    /// The master of the slots of `node`: itself or its partner, according to the running nodes.
    pub async fn master_of(&self, node: usize) -> usize {
        let up = view(self.up()).await;
        if up.iter().any(|seen| seen.is_master_at(&self.nodes[node])) { node } else { self.partner(node) }
    }

    /// SIGKILL.
    pub fn kill(&mut self, node: usize) {
        self.nodes[node].stop();
    }

    pub fn pause(&self, node: usize) {
        self.nodes[node].pause();
    }

    pub fn resume(&self, node: usize) {
        self.nodes[node].resume();
    }

    /// Restarts a node. It remembers the cluster. Returns when it replies: see
    /// [`settled`](Self::settled).
    pub async fn restart(&mut self, node: usize) {
        self.nodes[node].run().await;
    }

    /// A planned failover from `node` to its replica. Returns when all nodes know.
    pub async fn failover(&self, node: usize) -> usize {
        self.nodes[self.partner(node)].command("CLUSTER FAILOVER").await;
        self.failed_over(node).await
    }

    /// Waits until the replica of `node` is the master and all running nodes know. Returns it.
    pub async fn failed_over(&self, node: usize) -> usize {
        let new = self.partner(node);
        let took_over = async || {
            for node in self.nodes.iter().filter(|node| node.is_up()) {
                let is_master = view(node).await.iter().any(|seen| seen.is_master_at(&self.nodes[new]));
                if !is_master || !is_whole(node).await {
                    return false;
                }
            }
            true
        };
        eventually("the replica is master", took_over).await;
        new
    }

    /// Starts to move `slot`, without any key yet.
    pub async fn migration(&self, slot: u16, to: usize) -> Migration<'_> {
        let from = self.node_of_slot(slot).await;
        let (source, target) = (self.id(from).await, self.id(to).await);
        self.nodes[to].command(&format!("CLUSTER SETSLOT {slot} IMPORTING {source}")).await;
        self.nodes[from].command(&format!("CLUSTER SETSLOT {slot} MIGRATING {target}")).await;
        Migration { cluster: self, slot, from, to }
    }

    /// Moves `slot` with all its keys. Returns when all nodes know.
    pub async fn migrate_slot(&self, slot: u16, to: usize) {
        let migration = self.migration(slot, to).await;
        migration.move_keys().await;
        migration.finish().await;
    }

    async fn id(&self, node: usize) -> String {
        text(&self.nodes[node].command("CLUSTER MYID").await)
    }

    fn up(&self) -> &RedisServer {
        self.nodes.iter().find(|node| node.is_up()).expect("a node that is up")
    }

    fn number(&self, port: u16) -> usize {
        self.nodes.iter().position(|node| node.is_at(port)).expect("a node of ours")
    }

    async fn is_settled(&self) -> bool {
        let mut agreed = None;
        for node in self.nodes.iter().filter(|node| node.is_up()) {
            let view = view(node).await;
            let mut roles: Vec<_> = view.iter().map(|seen| (seen.port, seen.is_master())).collect();
            roles.sort_unstable();
            if roles.len() != self.nodes.len() || *agreed.get_or_insert_with(|| roles.clone()) != roles {
                return false;
            }
            if roles.iter().filter(|(_, is_master)| *is_master).count() != MASTERS || !is_whole(node).await {
                return false;
            }
            let info = node.info("replication").await;
            let master_is_up = async |port: &str| self.nodes[self.number(port.parse().unwrap())].is_up();
            if let Some(port) = info.get("master_port")
                && master_is_up(port).await
                && info["master_link_status"] != "up"
            {
                return false;
            }
        }
        true
    }
}

/// A slot that is being moved. It stays half way unless it is [finished](Self::finish).
pub struct Migration<'a> {
    cluster: &'a Cluster,
    pub slot: u16,
    pub from: usize,
    pub to: usize,
}

impl Migration<'_> {
    /// The keys that have not moved yet.
    pub async fn remaining(&self) -> Vec<String> {
        match self.source().command(&format!("CLUSTER GETKEYSINSLOT {} 100000", self.slot)).await {
            Value::Array(keys) => keys.iter().map(text).collect(),
            other => panic!("{other:?}"),
        }
    }

    /// Moves one key.
    pub async fn move_key(&self, key: &str) {
        let mut cmd = redis::cmd("MIGRATE");
        cmd.arg("127.0.0.1").arg(self.cluster.nodes[self.to].port()).arg("").arg(0).arg(5000);
        if let Some(password) = &self.cluster.password {
            cmd.arg("AUTH").arg(password);
        }
        cmd.arg("KEYS").arg(key);
        cmd.exec_async(&mut self.source().connect().await.unwrap()).await.unwrap();
    }

    /// Moves the current keys.
    pub async fn move_keys(&self) {
        for key in self.remaining().await {
            self.move_key(&key).await;
        }
    }

    /// Assigns the slot to its new node. Returns when all nodes know. Keys that were not moved are lost.
    pub async fn finish(self) {
        let id = self.cluster.id(self.to).await;
        let order = format!("CLUSTER SETSLOT {} NODE {id}", self.slot);
        self.cluster.nodes[self.to].command(&order).await;
        self.source().command(&order).await;
        let target = &self.cluster.nodes[self.to];
        let known = async || {
            for node in self.cluster.nodes.iter().filter(|node| node.is_up()) {
                if !view(node).await.iter().any(|seen| target.is_at(seen.port) && seen.serves(self.slot)) {
                    return false;
                }
            }
            true
        };
        eventually("all know where the slot is", known).await;
    }

    /// Cancels the move. Only if no key was moved.
    pub async fn give_up(self) {
        for node in [self.from, self.to] {
            self.cluster.nodes[node].command(&format!("CLUSTER SETSLOT {} STABLE", self.slot)).await;
        }
    }

    fn source(&self) -> &RedisServer {
        &self.cluster.nodes[self.from]
    }
}

/// A node as another node, or itself, sees it.
struct Seen {
    port: u16,
    flags: Vec<String>,
    epoch: u64,
    slots: Vec<RangeInclusive<u16>>,
}

impl Seen {
    /// A line of `CLUSTER NODES`: id, address, flags, master, ping, pong, epoch, link, slots.
    fn parse(line: &str) -> Self {
        let words: Vec<_> = line.split(' ').collect();
        let address = words[1].split('@').next().unwrap();
        // Slots that are being moved look like `[93-<-id]`.
        let slots = words[8..].iter().filter(|word| !word.starts_with('[')).map(|word| {
            let (first, last) = word.split_once('-').unwrap_or((word, word));
            first.parse().unwrap()..=last.parse().unwrap()
        });
        Self {
            port: address.rsplit(':').next().unwrap().parse().unwrap(),
            flags: words[2].split(',').map(str::to_owned).collect(),
            epoch: words[6].parse().unwrap(),
            slots: slots.collect(),
        }
    }

    fn is_master(&self) -> bool {
        self.flags.iter().any(|flag| flag == "master")
    }

    /// Whether this is a running node with slots.
    fn is_master_at(&self, node: &RedisServer) -> bool {
        node.is_at(self.port) && self.is_master() && !self.slots.is_empty()
    }

    fn serves(&self, slot: u16) -> bool {
        self.slots.iter().any(|range| range.contains(&slot))
    }
}

async fn view(node: &RedisServer) -> Vec<Seen> {
    text(&node.command("CLUSTER NODES").await).lines().map(Seen::parse).collect()
}

/// Whether the node serves its slots and sees all slots served.
async fn is_whole(node: &RedisServer) -> bool {
    let info = text(&node.command("CLUSTER INFO").await);
    let has = |wanted: String| info.lines().any(|line| line == wanted);
    has("cluster_state:ok".into()) && has(format!("cluster_slots_ok:{SLOTS}"))
}
