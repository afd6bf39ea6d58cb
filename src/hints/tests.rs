use super::*;

fn plain() -> Facts {
    Facts {
        network_devices: vec!["eth0".to_owned(), "lo".to_owned()],
        files: Some((1000, 1024)),
        shm: Some(Shm::Bytes {
            free: 1 << 30,
            size: 1 << 30,
        }),
        ..Facts::default()
    }
}

fn with_tls(value: &str) -> Facts {
    Facts {
        transports: Some(value.to_owned()),
        ..plain()
    }
}

fn with_devices(value: &str) -> Facts {
    Facts {
        chosen_devices: Some(value.to_owned()),
        ..plain()
    }
}

#[test]
fn nothing_suspicious_gives_the_general_advice() {
    assert_eq!(
        plain().on_opening(false),
        "`dynamo-nixl doctor` shows what is installed"
    );
    assert!(plain().on_opening(true).ends_with(SAY_MORE));
    assert_eq!(plain().on_transfer(false), None);
    assert_eq!(plain().on_transfer(true).as_deref(), Some(SAY_MORE));
    assert_eq!(
        plain().on_registration(MemoryKind::Dram, 1, false),
        "check that the memory is still mapped"
    );
    assert_eq!(plain().on_other_host(), None);
}

#[test]
fn transports_that_cannot_do() {
    for (value, expected) in [
        (
            "posix,sysv,self",
            "UCX_TLS=posix,sysv,self has no transport that notices when a peer is gone",
        ),
        ("self", "UCX_TLS=self has no transport that notices"),
        ("cma, sm", "UCX_TLS=cma, sm has no transport that notices"),
        ("rc", "UCX_TLS=rc asks for RDMA, and this machine shows no RDMA device"),
        ("rc_x,ud:aux,sm", "UCX_TLS=rc_x,ud:aux,sm asks for RDMA"),
        ("nonsense", "UCX_TLS=nonsense asks for nonsense, which UCX may not have"),
    ] {
        let hint = with_tls(value).on_opening(true);
        assert!(hint.starts_with(expected), "{value}: {hint}");
        assert!(hint.contains("add tcp"), "{value}: {hint}");
    }
    for value in ["tcp", "all", "rc,tcp", "^rc", "nonsense,tcp", "\\tcp"] {
        assert_eq!(with_tls(value).bad_transports(), None, "{value}");
    }
    let with_devices = Facts {
        rdma_devices: vec!["mlx5_0".to_owned()],
        ..with_tls("rc,sm")
    };
    assert_eq!(with_devices.bad_transports(), None);
}

#[test]
fn devices_that_do_not_exist() {
    let hint = with_devices("eth7,lo").on_opening(true);
    assert!(
        hint.starts_with("UCX_NET_DEVICES names eth7, which is not here: unset it, or choose from eth0, lo"),
        "{hint}"
    );
    assert!(with_devices("eth7").on_transfer(false).is_some());
    for value in ["all", "eth0", "lo,eth0", "^eth7", "mlx5_[0-3]:1"] {
        assert_eq!(with_devices(value).bad_devices(), None, "{value}");
    }
    let with_rdma = Facts {
        rdma_devices: vec!["mlx5_0".to_owned()],
        ..with_devices("mlx5_0:1")
    };
    assert_eq!(with_rdma.bad_devices(), None);
    // Where nothing can be seen, nothing is said.
    let blind = Facts {
        network_devices: Vec::new(),
        ..with_devices("eth7")
    };
    assert_eq!(blind.bad_devices(), None);
}

#[test]
fn limits() {
    let few = Facts {
        files: Some((3, 64)),
        ..plain()
    };
    for hint in [
        few.on_opening(false),
        few.on_registration(MemoryKind::Dram, 1, false),
        few.on_transfer(false).unwrap_or_default(),
    ] {
        assert!(
            hint.starts_with("only 3 more files can be opened of 64: raise `ulimit -n`"),
            "{hint}"
        );
    }

    let mut pinning = Facts {
        memlock: Some(8 << 20),
        locked: 1 << 20,
        ..plain()
    };
    assert_eq!(pinning.low_memlock(64 << 20), None, "nothing pins memory");
    pinning.rdma_devices.push("mlx5_0".to_owned());
    assert_eq!(pinning.low_memlock(7 << 20), None);
    let hint = pinning.on_registration(MemoryKind::Dram, (7 << 20) + 1, false);
    assert!(
        hint.starts_with("RDMA devices pin memory") && hint.contains("ulimit -l unlimited"),
        "{hint}"
    );
    pinning.memlock = None;
    assert_eq!(pinning.low_memlock(u64::MAX), None);
}

#[test]
fn shared_memory() {
    let full = Facts {
        shm: Some(Shm::Bytes {
            free: 4096,
            size: 64 << 20,
        }),
        ..plain()
    };
    assert!(
        full.on_opening(true)
            .starts_with("/dev/shm has 4096 bytes free of 67108864: clear it")
    );
    let absent = Facts {
        shm: Some(Shm::Absent),
        ..plain()
    };
    assert!(absent.on_opening(true).starts_with("there is no /dev/shm"));
    let unused = Facts {
        shm: Some(Shm::Absent),
        ..with_tls("tcp")
    };
    assert_eq!(unused.little_shm(), None);
}

#[test]
fn processes_that_may_not_look_at_each_other() {
    let scoped = Facts {
        ptrace_scope: Some(1),
        ..plain()
    };
    let hint = scoped.on_transfer(true).unwrap_or_default();
    assert!(hint.starts_with("kernel.yama.ptrace_scope=1 may keep"), "{hint}");
    let may = Facts {
        may_trace: true,
        ..scoped.clone()
    };
    assert_eq!(may.on_transfer(false), None);
    let tcp = Facts {
        transports: Some("tcp".to_owned()),
        ..scoped
    };
    assert_eq!(tcp.on_transfer(false), None);

    let contained = Facts {
        is_in_pid_namespace: true,
        ..plain()
    };
    assert!(
        contained
            .on_other_host()
            .is_some_and(|hint| hint.contains("pid namespace"))
    );
}

#[test]
fn device_memory_is_named() {
    assert!(
        plain()
            .on_registration(MemoryKind::Vram, 1, true)
            .starts_with("device memory needs a UCX")
    );
}

#[test]
fn looking_around_finds_what_is_there() {
    let facts = Facts::here();
    let (free, limit) = facts.files.unwrap();
    assert!(free < limit);
    assert!(facts.shm.is_some());
}

#[test]
fn fields_of_a_status() {
    let status = "Name:\tx\nVmLck:\t    12 kB\nCapEff:\t000001ffffffffff\n";
    assert_eq!(kibibytes(status, "VmLck:"), 12);
    assert_eq!(kibibytes(status, "VmPin:"), 0);
    assert_eq!(field(status, "CapEff:"), Some("000001ffffffffff"));
}
