//! Tests in several processes: a test binary starts itself again in another role.
//!
//! UCX reads its environment once, and NIXL cannot connect an agent with its own process in every way that matters. So
//! each scenario runs in a process of its own, with the transports it asks for, and starts its peers as further ones.
//! Whoever is started ends by itself when its standard input does.

use std::env;
use std::io::{BufRead, BufReader, Read, Write};
use std::process::{Child, ChildStdin, Command, ExitStatus, Stdio};
use std::sync::mpsc::{Receiver, channel};
use std::thread::{self, JoinHandle};
use std::time::Duration;

use super::{LIMIT, eventually_within, owner};

/// What the process is to do.
const ROLE: &str = "DYNAMO_NIXL_TEST_ROLE";
/// The test that is no test but the entry of a process with a role.
const ENTRY: &str = "child_process_entry";
/// What marks a line of ours among those of the test harness.
const MARK: &str = "@ ";
/// Longer than any wait inside of a scenario, so that the wait that failed is the one that speaks.
const SCENARIO_LIMIT: Duration = Duration::from_secs(100);

/// Makes one test of each scenario for UCX's default transports and one for TCP, and the entry of their processes and of
/// those of further roles. `log_level` is NIXL's; `None` leaves it as it is.
#[macro_export]
macro_rules! scenarios {
    (log_level: $log_level:expr, scenarios: [$($name:ident),+ $(,)?], roles: [$($role:ident),*]) => {
        #[test]
        fn child_process_entry() {
            $crate::support::process::enter(&[
                $((stringify!($name), $name as fn()),)+
                $((stringify!($role), $role as fn()),)*
            ]);
        }

        mod default_transports {
            $(
                #[test]
                fn $name() {
                    $crate::support::process::run_scenario(stringify!($name), None, $log_level);
                }
            )+
        }

        mod tcp {
            $(
                #[test]
                fn $name() {
                    $crate::support::process::run_scenario(stringify!($name), Some("tcp"), $log_level);
                }
            )+
        }
    };
}

/// Plays this process's role, if it has one.
pub(crate) fn enter(scenarios: &[(&str, fn())]) {
    let Ok(role) = env::var(ROLE) else { return };
    if let Some(owner) = role.strip_prefix("owner ") {
        owner::serve(owner);
    } else {
        let scenario = scenarios.iter().find(|(name, _)| *name == role);
        scenario.unwrap_or_else(|| panic!("no scenario is called {role}")).1();
    }
    assert!(
        dynamo_nixl::connector::shutdown(LIMIT),
        "something is not quiet at the end"
    );
}

/// Runs a scenario in a process of its own: it has to end with exit code 0 and nothing on standard error.
pub(crate) fn run_scenario(name: &str, transports: Option<&str>, log_level: Option<&str>) {
    let mut variables = Vec::new();
    variables.extend(transports.map(|transports| ("UCX_TLS", transports)));
    variables.extend(log_level.map(|level| ("NIXL_LOG_LEVEL", level)));
    let mut scenario = Process::start(name, &variables);
    let status = scenario.wait(SCENARIO_LIMIT);
    let errors = scenario.standard_error();
    assert!(status.success(), "{name} ended with {status}:\n{errors}");
    assert_eq!(errors, "", "{name} wrote to standard error");
}

/// A process that was started by this one. Dropping it kills it.
pub(crate) struct Process {
    child: Child,
    input: Option<ChildStdin>,
    lines: Receiver<String>,
    errors: Option<JoinHandle<String>>,
}

impl Process {
    /// Starts it, with these environment variables beside those of this process.
    pub(crate) fn start(role: &str, variables: &[(&str, &str)]) -> Self {
        let mut command = Command::new(env::current_exe().unwrap());
        command
            .args([ENTRY, "--exact", "--nocapture", "--test-threads=1"])
            .env(ROLE, role);
        command.envs(variables.iter().copied());
        if env::var_os("UCX_MODULES").is_none() {
            // With the distribution's libefa, every process that loads NIXL's wheel crashes at its exit.
            command.env("UCX_MODULES", "^efa");
        }
        let pipes = command
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped());
        let mut child = pipes.spawn().unwrap();
        let input = child.stdin.take();
        let output = BufReader::new(child.stdout.take().unwrap());
        let (sender, lines) = channel();
        thread::spawn(move || {
            for line in output.lines().map_while(Result::ok) {
                if let Some(line) = line.strip_prefix(MARK) {
                    // Nobody may listen any more.
                    let _ = sender.send(line.to_owned());
                }
            }
        });
        let mut errors = child.stderr.take().unwrap();
        let errors = thread::spawn(move || {
            let mut text = Vec::new();
            // What came before a failure still says the most.
            let _ = errors.read_to_end(&mut text);
            String::from_utf8_lossy(&text).into_owned()
        });
        Self {
            child,
            input,
            lines,
            errors: Some(errors),
        }
    }

    /// Sends one line and waits for the answer.
    #[track_caller]
    pub(crate) fn ask(&mut self, line: &str) -> String {
        let input = self.input.as_mut().unwrap();
        writeln!(input, "{line}").and_then(|()| input.flush()).unwrap();
        self.hear(line)
    }

    /// Waits for a line that `question` leads to.
    #[track_caller]
    pub(crate) fn hear(&mut self, question: &str) -> String {
        match self.lines.recv_timeout(LIMIT) {
            Ok(answer) => answer,
            Err(error) => {
                let _ = self.child.kill();
                panic!("no answer to {question:?} ({error}):\n{}", self.standard_error());
            }
        }
    }

    /// Ends it at once, with SIGKILL.
    pub(crate) fn kill(&mut self) {
        self.child.kill().unwrap();
        self.child.wait().unwrap();
    }

    /// Ends its input and waits for its end, which must be a clean one.
    #[track_caller]
    pub(crate) fn finish(mut self) {
        drop(self.input.take());
        let status = self.wait(LIMIT);
        let errors = self.standard_error();
        assert!(status.success(), "the process ended with {status}:\n{errors}");
        assert_eq!(errors, "", "the process wrote to standard error");
    }

    #[track_caller]
    fn wait(&mut self, limit: Duration) -> ExitStatus {
        let mut ended = None;
        eventually_within(limit, "the process ends", || {
            ended = self.child.try_wait().unwrap();
            ended.is_some()
        });
        ended.unwrap()
    }

    fn standard_error(&mut self) -> String {
        self.errors
            .take()
            .map(|errors| errors.join().unwrap())
            .unwrap_or_default()
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        // Refused where it has ended.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// Answers whoever started this process.
pub(crate) fn answer(line: &str) {
    // The harness leaves its own line open.
    println!("\n{MARK}{line}");
}
