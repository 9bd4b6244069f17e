//! Real programs under the default filter profile, which must not refuse what they need. A test is skipped if this
//! machine lacks its program.
#![allow(clippy::unwrap_used, clippy::panic, clippy::indexing_slicing, clippy::arithmetic_side_effects)]

mod attack_tools;
mod common;

use std::fs;
use std::io::Read;
use std::path::{Path, PathBuf};
use std::process::Command;

use attack_tools::{open_dir, read_only, writable};
use cofferdam::filter::{Filter, Profile};
use cofferdam::{Control, Sandbox, Stdio};
use common::{can, output, sandboxes, shell};

/// A shell script in a default sandbox, with a writable directory at `/work` and the host's programs.
fn job(dir: &Path, script: &str) -> Sandbox {
    let opt = [Path::new("/opt")].into_iter().filter(|path| path.is_dir()).map(|path| read_only(path, path));
    let sandbox = shell(script).volume(writable(dir, "/work")).work_dir("/work").env("HOME", "/work");
    opt.fold(sandbox, Sandbox::volume)
}

fn skipped(why: &str) {
    common::skip::note(why);
}

/// Runs a job, if its program is installed, and checks what it prints.
fn prints(program: &str, script: &str, expected: &str) {
    if !sandboxes() {
        return;
    }
    let find = format!("PATH=/usr/bin:/bin command -v {program}");
    if !Command::new("sh").args(["-c", &find]).output().unwrap().status.success() {
        return skipped(&format!("no {program} in /usr/bin"));
    }
    let dir = open_dir();
    let printed = output(job(dir.path(), script));
    assert!(printed.contains(expected), "{program}: {printed}");
}

#[test]
fn python_runs_threads_subprocesses_and_tls() {
    prints(
        "python3",
        "cat >job.py <<'END'
import concurrent.futures, multiprocessing, socket, ssl, subprocess
def square(n): return n * n
if __name__ == '__main__':
    with concurrent.futures.ThreadPoolExecutor(4) as pool: print(sum(pool.map(square, range(10))))
    print(subprocess.run(['id', '-u'], capture_output=True, text=True).stdout.strip())
    with multiprocessing.get_context('spawn').Pool(2) as pool: print(sum(pool.map(square, range(10))))
    ssl.create_default_context()
    a, b = socket.socketpair(); a.send(b'x'); print(b.recv(1))
    server = socket.create_server(('127.0.0.1', 0)); client = socket.create_connection(server.getsockname())
    print('done')
END
python3 job.py 2>&1",
        "done",
    );
}

#[test]
fn git_commits_and_clones() {
    prints(
        "git",
        "export GIT_AUTHOR_NAME=a GIT_AUTHOR_EMAIL=a GIT_COMMITTER_NAME=a GIT_COMMITTER_EMAIL=a
         { git init -q one && cd one && echo text >file && git add file && git commit -qm first && cd .. &&
         git clone -q one two && git clone -q file:///work/one three && git -C three log --oneline && echo cloned; } 2>&1",
        "cloned",
    );
}

#[test]
fn a_compiler_builds_and_the_program_runs() {
    prints(
        "cc",
        r#"cat >a.c <<'END'
#include <pthread.h>
#include <stdio.h>
void *f(void *text) { puts(text); return 0; }
int main(void) { pthread_t t; pthread_create(&t, 0, f, "built"); pthread_join(t, 0); return 0; }
END
cc -pthread -o a a.c 2>&1 && ./a"#,
        "built",
    );
}

/// The toolchain is mounted elsewhere, because it may be in a home directory that other users cannot enter.
#[test]
fn cargo_builds_a_crate() {
    if !sandboxes() || !can("root") {
        return;
    }
    let root = Command::new("rustc").args(["--print", "sysroot"]).output();
    let root =
        root.map(|root| PathBuf::from(String::from_utf8_lossy(&root.stdout).trim())).unwrap_or_default();
    if !root.join("bin/cargo").exists() {
        return skipped("no cargo beside rustc");
    }
    let dir = open_dir();
    fs::create_dir_all(dir.path().join("crate/src")).unwrap();
    let manifest = "[package]\nname = \"small\"\nversion = \"0.1.0\"\nedition = \"2021\"\n";
    fs::write(dir.path().join("crate/Cargo.toml"), manifest).unwrap();
    let main = "fn main() { std::thread::spawn(|| println!(\"{}\", small())).join().unwrap() }\n\
                fn small() -> u32 { (1..=4).product() }\n#[test] fn works() { assert_eq!(small(), 24); }\n";
    fs::write(dir.path().join("crate/src/main.rs"), main).unwrap();
    let script = "{ cp -r crate own && cd own && export PATH=/rust/bin:$PATH CARGO_HOME=/work/home \
                  CARGO_INCREMENTAL=0 && cargo run --offline -q && cargo test --offline; } 2>&1";
    let printed = output(job(dir.path(), script).volume(read_only(root, "/rust")));
    assert!(printed.contains("24") && printed.contains("1 passed"), "{printed}");
}

#[test]
fn java_runs_threads_and_sockets() {
    prints(
        "java",
        r#"cat >A.java <<'END'
public class A {
  public static void main(String[] a) throws Exception {
    var t = new Thread(() -> System.out.println("thread"));
    t.start();
    t.join();
    try (var s = new java.net.ServerSocket(0); var c = new java.net.Socket("localhost", s.getLocalPort())) { }
    new ProcessBuilder("true").start().waitFor();
    System.gc();
    System.out.println("java done");
  }
}
END
if command -v javac >/dev/null; then javac A.java 2>&1 && java A 2>&1; else java -Xshare:auto -version 2>&1 && echo java done; fi"#,
        "java done",
    );
}

#[test]
fn node_runs_workers_and_sockets() {
    prints(
        "node",
        r#"cat >a.js <<'END'
const { Worker } = require('worker_threads');
const { execFileSync } = require('child_process');
const net = require('net');
require('fs').readdirSync('/work');
console.log(execFileSync('id', ['-u']).toString().trim());
new Worker('require("worker_threads").parentPort.postMessage(1)', { eval: true }).on('message', () => {
  const server = net.createServer(() => {}).listen(0, '127.0.0.1', () => {
    net.connect(server.address().port, '127.0.0.1', () => { console.log('node done'); process.exit(0); });
  });
});
END
node a.js 2>&1"#,
        "node done",
    );
}

#[test]
fn strace_traces_its_own_child() {
    prints(
        "strace",
        "{ strace -f -o trace sh -c 'id; true' && grep -c execve trace && echo traced; } 2>&1",
        "traced",
    );
}

/// A program without a C library that creates a thread by clone(2) itself, as Go's runtime does.
const THREADS: &str = r#"
.globl _start
_start:
    mov $9, %eax; xor %edi, %edi; mov $65536, %esi; mov $3, %edx; mov $0x22, %r10d; mov $-1, %r8; xor %r9d, %r9d
    syscall
    lea 65536(%rax), %rsi
    mov $56, %eax
    mov $0x50f00, %edi          # VM FS FILES SIGHAND THREAD SYSVSEM
    xor %edx, %edx; xor %r10d, %r10d; xor %r8d, %r8d
    syscall
    test %rax, %rax
    js fail
    jz thread
wait:
    mov done(%rip), %eax
    test %eax, %eax
    jz wait
    mov $1, %eax; mov $1, %edi; lea text(%rip), %rsi; mov $8, %edx
    syscall
    mov $231, %eax; xor %edi, %edi
    syscall
thread:
    movl $1, done(%rip)
    mov $60, %eax; xor %edi, %edi
    syscall
fail:
    mov $231, %eax; mov $1, %edi
    syscall
.data
done: .long 0
text: .ascii "threads\n"
"#;

#[test]
fn static_program_creates_threads_by_clone() {
    assembled(THREADS, "-m64", "threads", Filter::Default);
}

const OF_32_BITS: &str = r#"
.globl _start
_start:
    mov $45, %eax; xor %ebx, %ebx          # brk
    int $0x80
    mov $20, %eax                          # getpid
    int $0x80
    mov $4, %eax; mov $1, %ebx; mov $text, %ecx; mov $8, %edx
    int $0x80
    mov $1, %eax; xor %ebx, %ebx
    int $0x80
.data
text: .ascii "32 bits\n"
"#;

/// An i386 program makes calls by the i386 table, unless the profile has `i386: false`.
#[test]
fn i386_program_runs_unless_the_profile_forbids_it() {
    assembled(OF_32_BITS, "-m32", "32 bits", Filter::Default);
    let off = Filter::Profile(Profile { i386: false, ..Profile::default() });
    assembled(OF_32_BITS, "-m32", "", off);
}

/// Assembles a program without libraries and runs it. It must print `expected`, or fail if that is empty.
fn assembled(source: &str, bits: &str, expected: &str, filter: Filter) {
    if !sandboxes() {
        return;
    }
    let dir = open_dir();
    fs::write(dir.path().join("a.s"), source).unwrap();
    let flags = ["-nostdlib", "-static", "-no-pie", "-Wl,-z,noexecstack", "-o", "a", "a.s"];
    let built = Command::new("cc").arg(bits).args(flags).current_dir(dir.path()).output();
    if !built.as_ref().is_ok_and(|built| built.status.success()) {
        return skipped("no compiler, or none for these bits");
    }
    let sandbox = job(dir.path(), "").with(|s| {
        (s.command, s.args) = ("/work/a".into(), Vec::new());
        s.filter = filter.clone();
    });
    let task = sandbox.stdout(Stdio::Piped).spawn().unwrap();
    assert!(task.report().enforced.contains(Control::SYSCALLS), "{}", task.report());
    let mut text = String::new();
    task.take_stdout().unwrap().read_to_string(&mut text).unwrap();
    let status = task.wait().unwrap();
    assert_eq!(text.trim(), expected, "{status}");
    assert_eq!(status.success(), !expected.is_empty(), "{status}");
}
