//! The ends of the link: TUN devices that live in their own network namespaces.

use std::{process::Command, str::FromStr};

use anyhow::{Context, Result, bail, ensure};
use tun_rs::{DeviceBuilder, SyncDevice};

/// Where one end of the link is to be found.
#[derive(Clone, Debug)]
pub struct End {
    /// The namespace; the device bears the same name.
    pub namespace: String,
    /// Address and prefix length, for example `10.77.0.1/24`.
    pub address: String,
}

impl FromStr for End {
    type Err = anyhow::Error;

    fn from_str(text: &str) -> Result<Self> {
        // The kernel's limit for a device name, less the closing zero.
        const LONGEST: usize = 15;
        let Some((namespace, address)) = text.split_once('=') else {
            bail!("expected NAMESPACE=ADDRESS/PREFIX, for example lab-a=10.77.0.1/24");
        };
        ensure!(
            (1..=LONGEST).contains(&namespace.len()),
            "the name of a namespace has 1 to {LONGEST} characters here"
        );
        Ok(Self {
            namespace: namespace.into(),
            address: address.into(),
        })
    }
}

/// Open a TUN device, hand its interface to the namespace of `end`, and bring it up there.
///
/// The descriptor stays in this process, whatever its own namespace is; the interface goes when the
/// descriptor is closed.
pub fn open(end: &End, mtu: u16) -> Result<SyncDevice> {
    let name = &end.namespace;
    // Without offloads the kernel cuts large segments before it hands them over, as for a real card.
    let device = DeviceBuilder::new()
        .name(name)
        .offload(false)
        .inherit_enable_state()
        .build_sync()
        .with_context(|| {
            format!("cannot create the TUN device {name}; is /dev/net/tun there, and are we root?")
        })?;
    device.set_nonblocking(true)?;
    let mtu = mtu.to_string();
    ip(&["link", "set", name, "netns", name])?;
    ip(&["-n", name, "addr", "add", &end.address, "dev", name])?;
    // A short device queue would drop bursts before the emulated queue ever sees them.
    ip(&[
        "-n",
        name,
        "link",
        "set",
        name,
        "mtu",
        &mtu,
        "txqueuelen",
        "10000",
        "up",
    ])?;
    Ok(device)
}

fn ip(arguments: &[&str]) -> Result<()> {
    let status = Command::new("ip")
        .args(arguments)
        .status()
        .context("cannot run ip; install iproute2")?;
    ensure!(status.success(), "`ip {}` failed", arguments.join(" "));
    Ok(())
}
