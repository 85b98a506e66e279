//! What the router does to packets: the wall that drops and rejects, and the NAT.

use crate::ground::{EDGE, Ground};

/// What happens to UDP.
#[derive(Clone, Copy)]
pub enum Block {
    Both,
    ToEdge,
    ToAgent,
    /// Not silently: with an ICMP message.
    Rejected,
}

/// What happens to a TCP connection.
#[derive(Clone, Copy)]
pub enum Cut {
    Reset,
    /// Silently.
    Dropped,
}

impl Ground {
    pub fn block_udp(&self, block: Block) {
        self.wall(&match block {
            Block::Both => "meta l4proto udp drop".into(),
            Block::ToEdge => format!("ip daddr {EDGE} meta l4proto udp drop"),
            Block::ToAgent => format!("ip saddr {EDGE} meta l4proto udp drop"),
            Block::Rejected => "meta l4proto udp reject".into(),
        });
    }

    /// Cut the WebSocket that there is now. Another one can be dialled.
    pub fn cut_websocket(&self, cut: Cut) {
        let shown = self
            .agents_space
            .run("ss", "-Htn state established dst 10.9.0.0/24");
        let local = shown.split_whitespace().nth(2).expect("a connection");
        let port = local.rsplit(':').next().expect("a port");
        let verdict = match cut {
            Cut::Reset => "reject with tcp reset",
            Cut::Dropped => "drop",
        };
        self.wall(&format!("tcp sport {port} {verdict}"));
        self.wall(&format!("tcp dport {port} {verdict}"));
    }

    /// Let everything pass.
    pub fn heal(&self) {
        self.router.run("nft", "flush chain inet wall forward");
    }

    fn wall(&self, rule: &str) {
        self.router
            .run("nft", &format!("add rule inet wall forward {rule}"));
    }

    /// Hide the agent behind a NAT that uses these ports from now on, and that forgets all it knew.
    pub fn rebind_nat(&self, ports: &str) {
        self.router.run("nft", "flush chain ip nat post");
        let rule = format!("oifname cable meta l4proto udp masquerade to :{ports}");
        self.router
            .run("nft", &format!("add rule ip nat post {rule}"));
        self.router.run("conntrack", "-F");
    }
}
