"""The two systems that are compared: how each boots the guest, and how each moves it."""

import json
import os
import resource
import signal
import socket
import subprocess
import threading
import time

from console import Console

TICK = os.sysconf("SC_CLK_TCK")


def cpu_seconds(pid, guests):
    """CPU time of a process, also of threads that ended, without that of the threads whose names
    begin with one of `guests`."""
    try:
        with open(f"/proc/{pid}/stat") as file:
            fields = file.read().rsplit(")", 1)[1].split()
        total = (int(fields[11]) + int(fields[12])) / TICK
        vcpus = 0
        for task in os.listdir(f"/proc/{pid}/task"):
            with open(f"/proc/{pid}/task/{task}/comm") as file:
                if not file.read().startswith(guests):
                    continue
            vcpus += 1
            with open(f"/proc/{pid}/task/{task}/schedstat") as file:
                total -= int(file.read().split()[0]) / 1e9
        # Behind their end their time can be told apart no more.
        return total if vcpus else 0.0
    except (FileNotFoundError, ProcessLookupError):
        return 0.0


class Sampler:
    """CPU time of a process that ends by itself, a few milliseconds before it does."""

    def __init__(self, pid, guests):
        self.last = self.first = cpu_seconds(pid, guests)
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run, args=(pid, guests), daemon=True)
        self._thread.start()

    def _run(self, pid, guests):
        while not self._stop.wait(0.01):
            self.last = max(self.last, cpu_seconds(pid, guests))

    def used(self):
        self._stop.set()
        self._thread.join()
        return self.last - self.first


class Move:
    """What one move of one guest cost."""

    def __init__(self, source, destination, begin, end, cpu, sent, downtime=None):
        self.source, self.destination = source, destination
        self.begin, self.end = begin, end  # ns
        self.cpu = cpu  # seconds, without the vCPUs
        self.sent = sent  # bytes
        self.downtime = downtime  # what the system itself says, ms

    @property
    def total(self):
        return (self.end - self.begin) / 1e9


class Ours:
    name = "migpipe"
    vcpus = ("vcpu",)

    def __init__(self, work):
        self.work = work
        self.env = dict(os.environ, XDG_RUNTIME_DIR=work, XDG_STATE_HOME=work)
        self.count = 0
        self.guests = []

    def boot(self, guest):
        self.count += 1
        name = f"g{self.count}"
        console = f"{self.work}/{name}.0"
        command = ["vmrun", "--again", "--log", "error", "--name", name, "--mem", guest.mem,
                   "--cpus", str(guest.cpus), "--console", f"unix:{console}",
                   "--kernel", guest.spec]
        process = subprocess.Popen(command, env=self.env)
        running = {"name": name, "process": process, "pid": process.pid,
                   "console": Console(console), "moves": 0, "home": name}
        self.guests.append(running)
        return running

    def move(self, guest, channel, options=()):
        guest["moves"] += 1
        channel, _, way = channel.partition(" ")
        options = [*options, *([f"--{way}"] if way else [])]
        name = f"{guest['home']}-{guest['moves']}"
        path = f"{self.work}/{name}.0"
        console = Console(path)
        receive = ["mig-recv", "--quiet", "--name", name, "--console", f"unix:{path}"]
        report = f"{self.work}/{name}.json"
        send = ["mig-send", "--quiet", "--report", report, *options, guest["name"]]
        before = resource.getrusage(resource.RUSAGE_CHILDREN)
        vmrun = Sampler(guest["pid"], self.vcpus)
        receiver = None
        if channel in ("tcp", "unix"):
            address = f"tcp:127.0.0.1:{free_port()}" if channel == "tcp" else f"unix:{self.work}/{name}.m"
            receiver = subprocess.Popen([*receive, address], env=self.env)
            wait_for_listener(address)
            send = [*send, address]
        begin = time.monotonic_ns()
        if channel == "exec":
            subprocess.run([*send, "exec:" + " ".join(receive)], env=self.env, check=True)
        elif channel == "pipe":
            read, write = os.pipe()
            sender = subprocess.Popen(send, stdout=write, env=self.env)
            os.close(write)
            receiver = subprocess.Popen(receive, stdin=read, env=self.env)
            os.close(read)
            if sender.wait() or receiver.wait():
                raise RuntimeError("the pipe failed")
            receiver = None
        else:
            subprocess.run(send, env=self.env, check=True)
        end = time.monotonic_ns()
        if receiver and receiver.wait():
            raise RuntimeError("mig-recv failed")
        after = resource.getrusage(resource.RUSAGE_CHILDREN)
        with open(report) as file:
            report = json.load(file)
        pid = int(subprocess.run(["vmctl", "status", "--json", name], env=self.env, check=True,
                                 capture_output=True, text=True).stdout.split('"pid":')[1].split(",")[0])
        # The source's vmrun has ended; it is waited for below, so that it is not among the children.
        cpu = (after.ru_utime + after.ru_stime) - (before.ru_utime + before.ru_stime)
        cpu += cpu_seconds(pid, self.vcpus) + vmrun.used()
        move = Move(guest["console"], console, begin, end, cpu, report["totals"]["sent_bytes"],
                    ((report.get("downtime") or {}).get("total_ns") or 0) / 1e6)
        move.report = report
        if channel == "pipe":
            # One way, the source keeps its copy: nobody has told it that the guest runs.
            self.throw_away(guest["name"])
        if guest["process"]:
            guest["process"].wait()
        guest.update(name=name, pid=pid, process=None, console=console)
        return move

    def throw_away(self, name):
        subprocess.run(["vmctl", "quit", "--force", name], env=self.env,
                       stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)

    def quit(self, guest):
        self.throw_away(guest["name"])
        guest["console"].close()
        if guest["process"]:
            guest["process"].wait()
        if guest in self.guests:
            self.guests.remove(guest)

    def close(self):
        for guest in list(self.guests):
            self.quit(guest)
        left = subprocess.run(["vmctl", "list", "--json"], env=self.env, capture_output=True, text=True)
        for guest in json.loads(left.stdout or "[]"):
            self.throw_away(guest["name"])


class Qemu:
    name = "QEMU"
    vcpus = ("CPU ",)

    def __init__(self, work, image, program="qemu-system-x86_64"):
        self.work, self.image, self.program = work, image, program
        self.count = 0
        self.guests = []

    def start(self, guest, incoming=None):
        self.count += 1
        name = f"q{self.count}"
        console, monitor = f"{self.work}/{name}.0", f"{self.work}/{name}.q"
        command = [self.program, "-name", f"{name},debug-threads=on", "-accel", "kvm", "-cpu", "qemu64",
                   "-M", "microvm,x-option-roms=off", "-m", guest.mem.replace("G", "g"), "-smp", str(guest.cpus),
                   "-kernel", self.image, "-append", guest.command_line,
                   "-nodefaults", "-no-user-config", "-display", "none", "-no-reboot",
                   "-serial", f"unix:{console},server=on,wait=off",
                   "-qmp", f"unix:{monitor},server=on,wait=off"]
        if incoming:
            command += ["-incoming", incoming]
        process = subprocess.Popen(command, stdin=subprocess.DEVNULL)
        running = {"spec": guest, "process": process, "pid": process.pid, "name": name,
                   "console": Console(console), "monitor": Monitor(monitor)}
        self.guests.append(running)
        return running

    def boot(self, guest):
        return self.start(guest)

    def move(self, guest, channel, options=()):
        kind, _, number = channel.partition("-")
        there = self.start(guest["spec"], "defer")
        name = there["name"]
        if kind in ("tcp", "multifd"):
            address = listen = f"tcp:127.0.0.1:{free_port()}"
        elif kind == "unix":
            address = listen = f"unix:{self.work}/{name}.m"
        else:
            fifo = f"{self.work}/{name}.f"
            os.mkfifo(fifo)
            address, listen = f"exec:cat >{fifo}", f"exec:cat {fifo}"
        for monitor in (guest["monitor"], there["monitor"]):
            monitor.set_parameters({"max-bandwidth": 1 << 40, "downtime-limit": 100})
            if kind == "multifd":
                monitor.set_capability("multifd")
                monitor.set_parameters({"multifd-channels": int(number)})
        there["monitor"].command("migrate-incoming", uri=listen)
        at_source = cpu_seconds(guest["pid"], self.vcpus)
        at_destination = cpu_seconds(there["pid"], self.vcpus)
        begin = time.monotonic_ns()
        guest["monitor"].command("migrate", uri=address)
        while True:
            state = guest["monitor"].command("query-migrate")
            if state.get("status") in ("completed", "failed"):
                break
            if time.monotonic_ns() - begin > 60e9:
                guest["monitor"].command("migrate_cancel")
                raise DoesNotEnd()
            time.sleep(0.001)
        end = time.monotonic_ns()
        if state["status"] == "failed":
            raise RuntimeError(f"QEMU: {state}")
        there["console"].wait_ticks(3)
        cpu = cpu_seconds(guest["pid"], self.vcpus) - at_source
        cpu += cpu_seconds(there["pid"], self.vcpus) - at_destination
        move = Move(guest["console"], there["console"], begin, end, cpu, state["ram"]["transferred"],
                    state.get("downtime"))
        self.end(guest)
        move.report = state
        guest.update(there)
        self.guests.append(guest)
        self.guests.remove(there)
        return move

    def end(self, guest):
        guest["console"].close()
        guest["process"].send_signal(signal.SIGKILL)
        guest["process"].wait()
        if guest in self.guests:
            self.guests.remove(guest)

    quit = end

    def close(self):
        for guest in list(self.guests):
            self.end(guest)


class DoesNotEnd(Exception):
    """A migration that does not converge."""


class Monitor:
    """QEMU's monitor protocol."""

    def __init__(self, path):
        for _ in range(2000):
            self.stream = socket.socket(socket.AF_UNIX)
            try:
                self.stream.connect(path)
                break
            except OSError:
                self.stream.close()
                time.sleep(0.005)
        self.file = self.stream.makefile("rw")
        self.file.readline()
        self.command("qmp_capabilities")

    def command(self, name, **arguments):
        self.file.write(json.dumps({"execute": name, "arguments": arguments}) + "\n")
        self.file.flush()
        while True:
            answer = json.loads(self.file.readline())
            if "return" in answer:
                return answer["return"]
            if "error" in answer:
                raise RuntimeError(f"{name}: {answer['error']}")

    def set_parameters(self, parameters):
        self.command("migrate-set-parameters", **parameters)

    def set_capability(self, name):
        self.command("migrate-set-capabilities", capabilities=[{"capability": name, "state": True}])


def free_port():
    with socket.socket() as stream:
        stream.bind(("127.0.0.1", 0))
        return stream.getsockname()[1]


def wait_for_listener(address):
    """Until somebody listens there; it is asked of the kernel, for a connection would be taken."""
    port = int(address.rsplit(":", 1)[1]) if address.startswith("tcp:") else None
    for _ in range(4000):
        if port is None:
            if os.path.exists(address.split(":", 1)[1]):
                return
        else:
            with open("/proc/net/tcp") as file:
                if any(f":{port:04X} 00000000:0000 0A" in line for line in file):
                    return
        time.sleep(0.0025)
    raise RuntimeError(f"nobody listens at {address}")
