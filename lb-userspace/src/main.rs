//! The `evenkeel` command: arguments and exit code.

use std::net::IpAddr;
use std::path::PathBuf;
use std::process::ExitCode;
use std::time::Duration;

use clap::{Args, Parser, Subcommand, ValueEnum};
use ipnet::IpNet;
use lb_common::net::Protocol;
use lb_userspace::cli;
use lb_userspace::cli::operator::RealServerName;
use lb_userspace::cli::status::Topic;
use lb_userspace::cli::stop::Legacy;
use lb_userspace::config::XdpMode;

/// Load balancer for TCP and UDP: XDP forwards by NAT, direct routing or tunnelling, from one TOML file.
///
/// Exit codes: 0 done, 1 failed, 2 wrong usage or configuration.
#[derive(Parser)]
#[command(name = "evenkeel", version, arg_required_else_help = true)]
struct Arguments {
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    /// Serve a configuration until SIGTERM or SIGINT, then put the host back as it was; SIGHUP reads it again
    Run {
        /// The configuration
        #[arg(short, long, value_name = "FILE", default_value = DEFAULT_CONFIG)]
        config: PathBuf,
    },
    /// Say whether a configuration is usable, with every error at its place; touches nothing, needs no root
    Check {
        /// The configuration
        #[arg(default_value = DEFAULT_CONFIG)]
        file: PathBuf,
        /// The same, as the other commands take it
        #[arg(short, long, value_name = "FILE", conflicts_with = "file")]
        config: Option<PathBuf>,
    },
    /// Show what a running daemon serves, and what it has counted
    Status {
        #[command(flatten)]
        target: TargetArguments,
        /// Say instead why packets were dropped: each reason that was counted, what it means, and what to do
        #[arg(long)]
        drops: bool,
        /// With --drops: every reason, also those that no packet was dropped for
        #[arg(long, requires = "drops")]
        all: bool,
        /// Print JSON instead of text
        #[arg(long)]
        json: bool,
    },
    /// List or count the connections in the table, also where the daemon has died; needs root
    ///
    /// In no order: each is printed as it is read. Idle and expiry times are exact to 256 jiffies, about a second at 250 Hz, and
    /// a connection whose time is over is there for a few seconds more. Persistence templates are listed with the network of
    /// their clients.
    Connections {
        #[command(flatten)]
        target: TargetArguments,
        #[command(flatten)]
        options: ConnectionsArguments,
    },
    /// Take a real server out of the schedule: it gets no new connections, and those it has go on
    ///
    /// A reload and `evenkeel restart` keep that; a stop and start does not: there, write weight = 0 in the configuration.
    Drain {
        /// Its address: "ip" for any port, or "ip:port" with IPv6 in brackets
        #[arg(value_name = "SERVER")]
        real_server: RealServerName,
        #[command(flatten)]
        options: MemberArguments,
        /// Give it back after this time, in whole seconds, such as "60s" or "10m"; without it, until `evenkeel undrain`
        #[arg(long = "for", value_name = "TIME", value_parser = humantime::parse_duration)]
        span: Option<Duration>,
    },
    /// Give a drained real server back; with slow_start its weight rises from 1
    Undrain {
        /// Its address, as with drain
        #[arg(value_name = "SERVER")]
        real_server: RealServerName,
        #[command(flatten)]
        options: MemberArguments,
    },
    /// Read the configuration again and serve what it says, as on SIGHUP; where it has errors or needs a restart, the old one
    /// holds
    Reload {
        #[command(flatten)]
        target: TargetArguments,
    },
    /// Start the executable that is on disk now, with the same arguments, in the place of the running daemon: connections and
    /// counters go on. Where the new one cannot, the old one goes on as if nothing had happened
    ///
    /// Tables that do not fit the new one are made anew; what did not fit, and how many connections are lost, is said then.
    Restart {
        #[command(flatten)]
        target: TargetArguments,
    },
    /// Stop a daemon as SIGTERM does, and wait until it has ended
    Stop {
        #[command(flatten)]
        target: TargetArguments,
        /// Leave everything as it is: the program forwards on, and the next daemon goes on with its connections
        #[arg(long, conflicts_with = "unit")]
        keep: bool,
        /// As with --keep if systemd is restarting this unit, else not; for ExecStop=, as "%n"
        #[arg(long, value_name = "NAME")]
        unit: Option<String>,
    },
    /// Remove what a daemon that was killed has left: its program, pins, socket, and changes to the host
    Cleanup {
        /// The configuration that the daemon ran
        #[arg(short, long, value_name = "FILE", default_value = DEFAULT_CONFIG)]
        config: PathBuf,
    },
    /// On a real server: strip IPIP and IP6IP6 from packets to a VIP, where the kernel has no tunnel device
    Decap {
        /// The interface that tunnelled packets arrive by
        #[arg(short, long)]
        interface: String,
        /// A VIP that packets inside the tunnel are for; may be given several times
        #[arg(long = "vip", value_name = "VIP", required = true)]
        vips: Vec<IpAddr>,
        /// How to attach the program
        #[arg(long, value_enum, default_value_t = Mode::Auto)]
        mode: Mode,
    },
}

/// Which connections are meant, and how they are shown. All that is given must be so of a connection.
#[derive(Args)]
struct ConnectionsArguments {
    /// With this virtual server: its name (where the daemon runs, or with --config), "ip", or "ip:port"
    #[arg(long, value_name = "NAME")]
    virtual_server: Option<String>,
    /// Served by this real server: "ip" for any port, or "ip:port" with IPv6 in brackets
    #[arg(long, value_name = "SERVER")]
    real_server: Option<RealServerName>,
    /// Of clients in this network, or of this address
    #[arg(long, value_name = "CIDR", value_parser = cli::connections::network)]
    client: Option<IpNet>,
    /// In this state: opening, established, client-fin, server-fin, both-fin, closed, udp, template; established-new (by one
    /// packet), udp-new (one datagram) and template-new (not confirmed) are part of those without "-new", and alone by name
    #[arg(long, value_name = "STATE", value_parser = cli::connections::state)]
    state: Option<u8>,
    /// Of this protocol: tcp, udp or sctp
    #[arg(long, value_name = "PROTOCOL", value_parser = cli::connections::protocol)]
    protocol: Option<Protocol>,
    /// Count instead, by virtual server, real server and state
    #[arg(long)]
    count: bool,
    /// List so many at most; 0: all
    #[arg(long, value_name = "NUMBER", default_value_t = 1000, conflicts_with = "count")]
    limit: usize,
    /// Print JSON: an object a line, or one object with --count
    #[arg(long)]
    json: bool,
}

/// Which real server of which daemon is meant.
#[derive(Args)]
struct MemberArguments {
    /// Of this virtual server only: its name, "ip:port", or "tcp ip:port" where there is one for UDP too
    #[arg(long, value_name = "NAME")]
    virtual_server: Option<String>,
    #[command(flatten)]
    target: TargetArguments,
}

/// Which daemon is meant; without any of these, the only one that runs.
#[derive(Args)]
#[group(multiple = false)]
struct TargetArguments {
    /// The daemon that listens on this socket
    #[arg(long, value_name = "PATH")]
    socket: Option<PathBuf>,
    /// The daemon that runs this configuration
    #[arg(short, long, value_name = "FILE")]
    config: Option<PathBuf>,
    /// The daemon with this instance name and the default runtime directory
    #[arg(long, value_name = "NAME")]
    instance: Option<String>,
    /// The daemon that is the process with this id, as a service manager knows it
    #[arg(long, value_name = "PID")]
    pid: Option<u32>,
}

#[derive(Clone, Copy, ValueEnum)]
enum Mode {
    /// In the driver where it can, else generic
    Auto,
    /// In the driver, or not at all
    Native,
    /// After the kernel has built an skb: works everywhere, slowly
    Generic,
}

const DEFAULT_CONFIG: &str = "/etc/evenkeel/evenkeel.toml";

fn main() -> ExitCode {
    let result = match Arguments::parse().command {
        Command::Run { config } => cli::run::run(&config),
        Command::Check { file, config } => Ok(cli::check::check(&config.unwrap_or(file))),
        Command::Status { target, drops, all, json } => {
            let topic = if drops { Topic::Drops { all } } else { Topic::Everything };
            cli::status::status(&target.into(), topic, json)
        }
        Command::Connections { target, options } => cli::connections::connections(&target.into(), &options.into()),
        Command::Drain { real_server, options, span } => {
            cli::operator::drain(&options.target.into(), real_server, options.virtual_server, span)
        }
        Command::Undrain { real_server, options } => {
            cli::operator::undrain(&options.target.into(), real_server, options.virtual_server)
        }
        Command::Reload { target } => cli::operator::reload(&target.into()),
        Command::Restart { target } => cli::stop::restart(&target.into()),
        Command::Stop { target, keep, unit } => {
            let legacy = match unit {
                Some(unit) => Legacy::AsUnit(unit),
                None if keep => Legacy::Keep,
                None => Legacy::Withdraw,
            };
            cli::stop::stop(&target.into(), &legacy)
        }
        Command::Cleanup { config } => cli::cleanup::cleanup(&config),
        Command::Decap { interface, vips, mode } => cli::decap::decap(&interface, &vips, mode.into()),
    };
    result.unwrap_or_else(|error| {
        eprintln!("evenkeel: {}", lb_userspace::error::chain(error.as_ref()));
        ExitCode::FAILURE
    })
}

impl From<TargetArguments> for cli::instance::Target {
    fn from(arguments: TargetArguments) -> Self {
        let TargetArguments { socket, config, instance, pid } = arguments;
        match (socket, config, instance, pid) {
            (Some(path), _, _, _) => Self::Socket(path),
            (_, Some(file), _, _) => Self::Config(file),
            (_, _, Some(name), _) => Self::Instance(name),
            (_, _, _, Some(pid)) => Self::Process(pid),
            (None, None, None, None) => Self::Only,
        }
    }
}

impl From<ConnectionsArguments> for cli::connections::Options {
    fn from(arguments: ConnectionsArguments) -> Self {
        let ConnectionsArguments { virtual_server, real_server, client, state, protocol, count, limit, json } =
            arguments;
        Self { virtual_server, real_server, client, state, protocol, count, limit, json }
    }
}

impl From<Mode> for XdpMode {
    fn from(mode: Mode) -> Self {
        match mode {
            Mode::Auto => Self::Auto,
            Mode::Native => Self::Native,
            Mode::Generic => Self::Generic,
        }
    }
}
