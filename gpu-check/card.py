"""Provides the card by the driver's own libraries: what is free, a ballast that leaves as much as a smaller card has, and memory peaks of processes.

    python3 card.py ballast --leave-mib 24564      takes the rest of the card until standard input ends

Needs no Python package. Where there is no NVIDIA driver, `Card.open()` gives None and peaks are those of resident memory.
"""

import argparse
import ctypes
import json
import os
import pathlib
import subprocess
import sys
import threading

MIB = 1 << 20
# What an RTX 4090 has by nvidia-smi.
CARD_MIB = 24_564
# A ballast is taken in pieces of this size, smaller ones where they fail.
PIECE_BYTES = 1 << 30
POLL_SECONDS = 0.05
PROCESSES_MAX = 64


class ProcessInfo(ctypes.Structure):
    """nvmlProcessInfo_v2_t."""

    _fields_ = [("pid", ctypes.c_uint), ("used_bytes", ctypes.c_ulonglong), ("gpu_instance", ctypes.c_uint), ("compute_instance", ctypes.c_uint)]


class MemoryInfo(ctypes.Structure):
    """nvmlMemory_t."""

    _fields_ = [("total", ctypes.c_ulonglong), ("free", ctypes.c_ulonglong), ("used", ctypes.c_ulonglong)]


def library(name):
    try:
        return ctypes.CDLL(name)
    except OSError:
        return None


class Card:
    """The first card through NVML, which takes no memory of it."""

    @staticmethod
    def open():
        nvml = library("libnvidia-ml.so.1")
        if nvml is None or nvml.nvmlInit_v2() != 0:
            return None
        handle = ctypes.c_void_p()
        if nvml.nvmlDeviceGetHandleByIndex_v2(0, ctypes.byref(handle)) != 0:
            return None
        return Card(nvml, handle)

    def __init__(self, nvml, handle):
        self.nvml, self.handle = nvml, handle

    def facts(self):
        """Name, driver and memory."""
        name, driver = ctypes.create_string_buffer(128), ctypes.create_string_buffer(128)
        self.nvml.nvmlDeviceGetName(self.handle, name, 128)
        self.nvml.nvmlSystemGetDriverVersion(driver, 128)
        memory = self.memory()
        return {"device": name.value.decode(), "driver": driver.value.decode(), "total_mib": memory.total // MIB, "used_mib": memory.used // MIB}

    def memory(self):
        info = MemoryInfo()
        self.nvml.nvmlDeviceGetMemoryInfo(self.handle, ctypes.byref(info))
        return info

    def by_process(self):
        """Bytes of every process that computes there; empty where the system does not tell (WSL2, some sandboxes)."""
        infos, count = (ProcessInfo * PROCESSES_MAX)(), ctypes.c_uint(PROCESSES_MAX)
        if self.nvml.nvmlDeviceGetComputeRunningProcesses_v3(self.handle, ctypes.byref(count), infos) != 0:
            return {}
        return {info.pid: info.used_bytes for info in infos[: count.value] if info.used_bytes < 1 << 60}


def resident_peak(pid):
    """Peak resident bytes of a process that still runs."""
    try:
        with open(f"/proc/{pid}/status") as status:
            for line in status:
                if line.startswith("VmHWM:"):
                    return int(line.split()[1]) * 1024
    except (OSError, ValueError):
        pass
    return 0


def children(pid):
    """Processes that a process has started, as a trainer that takes turns with its teacher does."""
    for path in pathlib.Path("/proc").glob("[0-9]*/stat"):
        try:
            parent = int(path.read_text().rpartition(") ")[2].split()[1])
        except (OSError, IndexError, ValueError):
            continue
        if parent == pid:
            yield int(path.parent.name)


class Watch:
    """Peaks while the `with` block runs: of each process named, and of the card over what it held at the start."""

    def __init__(self, processes):
        self.pids = {name: process.pid for name, process in processes.items()}
        self.card = Card.open()
        self.peaks, self.card_peak, self.base = {}, 0, 0
        self.stop = threading.Event()
        self.thread = threading.Thread(target=self.poll, daemon=True)

    def __enter__(self):
        self.base = self.card.memory().used if self.card else 0
        self.thread.start()
        return self

    def __exit__(self, *_):
        self.stop.set()
        self.thread.join()

    def poll(self):
        while not self.stop.wait(POLL_SECONDS):
            used = self.card.by_process() if self.card else {}
            for name, pid in self.pids.items():
                family = [pid, *children(pid)]
                now = sum(used.get(one, 0) for one in family) if self.card else max(map(resident_peak, family))
                self.peaks[name] = max(self.peaks.get(name, 0), now)
            if self.card:
                self.card_peak = max(self.card_peak, self.card.memory().used)

    def report(self):
        """MiB; a process that the driver does not tell apart has none, and then the card's own peak is what there is."""
        kind = "device" if self.card else "resident"
        report = {"memory": kind, "peak_mib": {name: round(peak / MIB) if peak else None for name, peak in self.peaks.items()}}
        if self.card:
            report["card_peak_mib"] = round(self.card_peak / MIB)
            report["card_base_mib"] = round(self.base / MIB)
        return report


def check(status, what):
    if status != 0:
        sys.exit(f"{what} failed: CUDA error {status}")


def ballast(leave_mib):
    """Takes all but `leave_mib` of what is free; says how much is left as a JSON line; holds it until standard input ends."""
    cuda = library("libcuda.so.1")
    if cuda is None:
        sys.exit("no libcuda.so.1: there is no NVIDIA driver here")
    device, context = ctypes.c_int(), ctypes.c_void_p()
    check(cuda.cuInit(0), "cuInit")
    check(cuda.cuDeviceGet(ctypes.byref(device), 0), "cuDeviceGet")
    check(cuda.cuDevicePrimaryCtxRetain(ctypes.byref(context), device), "cuDevicePrimaryCtxRetain")
    check(cuda.cuCtxSetCurrent(context), "cuCtxSetCurrent")
    free, total = ctypes.c_size_t(), ctypes.c_size_t()

    def measure():
        check(cuda.cuMemGetInfo_v2(ctypes.byref(free), ctypes.byref(total)), "cuMemGetInfo")
        return free.value

    piece, target = PIECE_BYTES, leave_mib * MIB
    while piece >= MIB:
        pointer = ctypes.c_ulonglong()
        if measure() - piece < target or cuda.cuMemAlloc_v2(ctypes.byref(pointer), ctypes.c_size_t(piece)) != 0:
            piece //= 2
    print(json.dumps({"free_mib": measure() // MIB, "total_mib": total.value // MIB}), flush=True)
    sys.stdin.read()


class Ballast:
    """The ballast's process for the time of a `with` block. Nothing where there is no card, or none bigger than what is to be left."""

    def __init__(self, leave_mib=CARD_MIB):
        self.leave_mib, self.process, self.left = leave_mib, None, None

    def __enter__(self):
        card = Card.open()
        if card is None:
            return self
        memory = card.memory()
        self.left = {"free_mib": memory.free // MIB, "total_mib": memory.total // MIB}
        if memory.free > self.leave_mib * MIB:
            command = [sys.executable, os.path.abspath(__file__), "ballast", "--leave-mib", str(self.leave_mib)]
            self.process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
            line = self.process.stdout.readline()
            if not line:
                raise RuntimeError("the ballast could not be taken")
            self.left = json.loads(line)
        return self

    def __exit__(self, *_):
        if self.process:
            self.process.stdin.close()
            self.process.wait(timeout=60)


def main():
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("what", choices=("ballast", "facts"))
    parser.add_argument("--leave-mib", type=int, default=CARD_MIB)
    options = parser.parse_args()
    if options.what == "ballast":
        ballast(options.leave_mib)
    else:
        card = Card.open()
        print(json.dumps(card.facts() if card else {"device": None}))


if __name__ == "__main__":
    main()
