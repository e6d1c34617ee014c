"""Load the programs of an object file through bpf(2), and read and write their maps.

Knows ELF as far as clang writes it for this target and the few commands of bpf(2) that are needed; knows nothing of
what the programs do. No compiler and no libbpf is needed where this runs. Constants are those of linux/bpf.h.
"""

from __future__ import annotations

import ctypes
import errno
import os
import struct
from collections.abc import Iterator
from dataclasses import dataclass, replace
from functools import lru_cache
from pathlib import Path
from typing import Final, NamedTuple

from elftools.elf.constants import SH_FLAGS
from elftools.elf.elffile import ELFFile

from dysco.errors import HostError, PermissionDeniedError

_MAP_CREATE: Final = 0
_MAP_LOOKUP: Final = 1
_MAP_UPDATE: Final = 2
_MAP_DELETE: Final = 3
_MAP_NEXT_KEY: Final = 4
_PROG_LOAD: Final = 5
_OBJ_PIN: Final = 6
_OBJ_GET: Final = 7
_PROG_TEST_RUN: Final = 10
_PROG_FD_BY_ID: Final = 13
_MAP_FD_BY_ID: Final = 14
_OBJ_INFO: Final = 15
_MAP_LOOKUP_BATCH: Final = 24
_MAP_UPDATE_BATCH: Final = 26
_PROG_BIND_MAP: Final = 35
_BATCH: Final = 4096
# asm/unistd.h; what is not listed has the generic table
_SYS_BPF: Final = {"x86_64": 321, "i686": 357, "armv7l": 386, "ppc64le": 361, "s390x": 351}.get(
    os.uname().machine, 280
)
_POSSIBLE_CPUS: Final = Path("/sys/devices/system/cpu/possible")
_SCHED_CLS: Final = 3
_PSEUDO_MAP_FD: Final = 1
_PSEUDO_MAP_VALUE: Final = 2
_VALUE: Final = "value/"  # how sections of variables begin that stand for the only value of a map
_LOG_BYTES: Final = 1 << 20
_NO_PREALLOC: Final = 1
HASH: Final = 1
ARRAY: Final = 2
PROG_ARRAY: Final = 3
PERCPU_ARRAY: Final = 6
RINGBUF: Final = 27
_CALL: Final = 10  # R_BPF_64_32: a call of a function in another section
_FUNCTIONS: Final = ".text"

_libc = ctypes.CDLL(None, use_errno=True)


@dataclass(frozen=True, slots=True)
class MapSpec:
    """How to make a map: type, sizes of key and value in bytes, and how many entries.

    layout: of its keys and values, four characters that stand in its name in the kernel; empty: does not matter.
    """

    name: str
    type: int
    key_size: int
    value_size: int
    entries: int
    layout: str = ""

    def allows(self, found: MapSpec) -> bool:
        """Whether a map that is there may be this one; a hash map may have been made for more or fewer entries."""
        return replace(found, entries=self.entries) == self if self.type == HASH else found == self


class Program(NamedTuple):
    """A program as it stands in an object file; maps, values: where it wants which one, or its only value's address."""

    code: bytes
    maps: tuple[tuple[int, str], ...]
    values: tuple[tuple[int, str], ...]


class Map:
    """A map by its descriptor. Keys and values are bytes of the sizes that its spec gives."""

    def __init__(self, spec: MapSpec, fd: int) -> None:
        self.spec = spec
        self.fd = fd
        self._key = ctypes.create_string_buffer(spec.key_size)
        # The kernel fills one value, of a multiple of eight bytes, for each CPU that there might ever be.
        values = _possible_cpus() if spec.type == PERCPU_ARRAY else 1
        self._value = ctypes.create_string_buffer(spec.value_size * values)
        self._attribute = ctypes.create_string_buffer(
            struct.pack("=I4xQQQ", fd, ctypes.addressof(self._key), ctypes.addressof(self._value), 0), 32
        )
        # What a command does not use must be zero, or it is refused.
        self._key_attribute = ctypes.create_string_buffer(
            struct.pack("=I4xQ", fd, ctypes.addressof(self._key)), 32
        )

    def put(self, key: bytes, value: bytes) -> None:
        """Insert or replace; HostError if the map is full."""
        self._key.raw = key
        self._value.raw = value
        if _libc.syscall(_SYS_BPF, _MAP_UPDATE, self._attribute, 32) < 0:
            raise _error(f"the map {self.spec.name!r} takes no more entries")

    def put_all(self, keys: bytes, values: bytes) -> None:
        """Insert or replace many, keys and values one after the other. Raises HostError."""
        count = len(keys) // self.spec.key_size
        places = (
            ctypes.create_string_buffer(keys, len(keys)),
            ctypes.create_string_buffer(values, len(values)),
        )
        where = map(ctypes.addressof, places)
        attribute = ctypes.create_string_buffer(
            struct.pack("=QQQQIIQQ", 0, 0, *where, count, self.fd, 0, 0), 64
        )
        if count and _libc.syscall(_SYS_BPF, _MAP_UPDATE_BATCH, attribute, 64) < 0:
            raise _error(f"the map {self.spec.name!r} takes no more entries")

    def delete(self, key: bytes) -> None:
        """Remove; no error if it is not there. Raises HostError."""
        self._key.raw = key
        if (
            _libc.syscall(_SYS_BPF, _MAP_DELETE, self._key_attribute, 32) < 0
            and ctypes.get_errno() != errno.ENOENT
        ):
            raise _error(f"the map {self.spec.name!r} gives nothing up")

    def get(self, key: bytes) -> bytes | None:
        """The value, of all CPUs one after the other for a per-CPU map; None if the key is not there."""
        self._key.raw = key
        if _libc.syscall(_SYS_BPF, _MAP_LOOKUP, self._attribute, 32) < 0:
            if ctypes.get_errno() != errno.ENOENT:
                raise _error(f"the map {self.spec.name!r} cannot be read")
            return None
        return self._value.raw

    def keys(self) -> list[bytes]:
        """All keys of a hash map; what is inserted or deleted meanwhile may be missed or given."""
        found: list[bytes] = []
        after = ctypes.create_string_buffer(self.spec.key_size)
        attribute = ctypes.create_string_buffer(32)
        where = (ctypes.addressof(after), ctypes.addressof(self._key))
        struct.pack_into("=I4xQQ", attribute, 0, self.fd, 0, where[1])
        while len(found) < self.spec.entries:
            if _libc.syscall(_SYS_BPF, _MAP_NEXT_KEY, attribute, 32) < 0:
                if ctypes.get_errno() != errno.ENOENT:
                    raise _error(f"the map {self.spec.name!r} cannot be read")
                break
            found.append(self._key.raw)
            after.raw = self._key.raw
            struct.pack_into("=Q", attribute, 8, where[0])
        return found

    def items(self) -> Iterator[tuple[bytes, bytes]]:
        """All keys and values of a hash map, in batches; what is inserted or deleted meanwhile may be missed."""
        key_size, value_size = self.spec.key_size, self.spec.value_size
        keys = ctypes.create_string_buffer(key_size * _BATCH)
        values = ctypes.create_string_buffer(value_size * _BATCH)
        # Where the next batch begins, in the kernel's words: at least four bytes, at least a key.
        place = ctypes.create_string_buffer(max(key_size, 4))
        at, begin, size = ctypes.addressof(place), 0, _BATCH
        while True:
            where = (begin, at, ctypes.addressof(keys), ctypes.addressof(values))
            attribute = ctypes.create_string_buffer(struct.pack("=QQQQIIQQ", *where, size, self.fd, 0, 0), 64)
            failed = _libc.syscall(_SYS_BPF, _MAP_LOOKUP_BATCH, attribute, 64) < 0
            if failed and ctypes.get_errno() != errno.ENOENT:  # ENOENT: these are the last
                raise _error(f"the map {self.spec.name!r} cannot be read")
            count = struct.unpack_from("=I", attribute, 32)[0]
            raw_keys, raw_values = keys.raw, values.raw
            for number in range(count):
                yield (
                    raw_keys[number * key_size : (number + 1) * key_size],
                    raw_values[number * value_size : (number + 1) * value_size],
                )
            if failed:
                return
            begin = at

    def close(self) -> None:
        """Give the descriptor back; the map lives as long as a program uses it."""
        if self.fd >= 0:
            os.close(self.fd)
            self.fd = -1


def create_map(spec: MapSpec) -> Map:
    """Make a map in the kernel. Raises HostError, PermissionDeniedError."""
    flags = _NO_PREALLOC if spec.type == HASH else 0
    sizes = (spec.type, spec.key_size, spec.value_size, spec.entries, flags)
    attribute = struct.pack("=IIIIIII16s", *sizes, 0, 0, _kernel_name(spec))
    return Map(spec, call(_MAP_CREATE, attribute, f"the map {spec.name!r} cannot be made"))


def _kernel_name(spec: MapSpec) -> bytes:
    return (f"{spec.name}.{spec.layout}" if spec.layout else spec.name).encode()[:15]


def load_program(object_file: Path, section: str, maps: dict[str, Map]) -> int:
    """Load the program of an ELF section and return its descriptor. Raises HostError with the verifier's words."""
    code = _relocated(object_file, section, maps)
    instructions = ctypes.create_string_buffer(code, len(code))
    licence = ctypes.create_string_buffer(b"Dual MIT/GPL")
    name = f"dysco_{section.rpartition('/')[2]}".encode()[:15]
    for log_size in (0, _LOG_BYTES):
        log = ctypes.create_string_buffer(log_size or 1)
        attribute = struct.pack(
            "=IIQQIIQII16s",
            _SCHED_CLS,
            len(code) // 8,
            ctypes.addressof(instructions),
            ctypes.addressof(licence),
            1 if log_size else 0,
            log_size,
            ctypes.addressof(log) if log_size else 0,
            0,
            0,
            name,
        )
        try:
            return call(_PROG_LOAD, attribute, f"the program {section!r} cannot be loaded")
        except PermissionDeniedError:
            raise
        except HostError as error:
            if log_size:
                tail = log.value.decode(errors="replace").strip().splitlines()[-12:]
                raise HostError(f"{error}; the verifier says:\n" + "\n".join(tail)) from None
    raise AssertionError("unreachable")


def run_program(fd: int, frame: bytes) -> int:
    """Run a program on a frame that nobody sends, and give what it returns. Raises HostError."""
    data = ctypes.create_string_buffer(frame, len(frame))
    attribute = ctypes.create_string_buffer(
        struct.pack("=IIIIQQII", fd, 0, len(frame), 0, ctypes.addressof(data), 0, 1, 0), 128
    )
    if _libc.syscall(_SYS_BPF, _PROG_TEST_RUN, attribute, 128) < 0:
        raise _error("a program cannot be run")
    return int(struct.unpack_from("=i", attribute, 4)[0])


def run_program_on(fd: int, frame: bytes) -> bytes:
    """Run a program on a frame that nobody sends, and give what it made of it, as long. Raises HostError."""
    data = ctypes.create_string_buffer(frame, len(frame))
    where = ctypes.addressof(data)
    attribute = ctypes.create_string_buffer(
        struct.pack("=IIIIQQII", fd, 0, len(frame), len(frame), where, where, 1, 0), 128
    )
    if _libc.syscall(_SYS_BPF, _PROG_TEST_RUN, attribute, 128) < 0:
        raise _error("a program cannot be run")
    return data.raw


def bind_map(program: int, one: Map) -> None:
    """Let a map live as long as a program, although it does not use it. Raises HostError."""
    call(_PROG_BIND_MAP, struct.pack("=III", program, one.fd, 0), f"the map {one.spec.name!r} cannot be kept")


def pin(fd: int, path: Path) -> None:
    """Let a map, program or link live as long as a file in a bpffs; in one step in place of what was pinned there.

    Raises HostError.
    """
    fresh = path.with_name(f"{path.name}+")
    try:
        fresh.unlink(missing_ok=True)
        name = ctypes.create_string_buffer(os.fsencode(fresh))
        call(_OBJ_PIN, struct.pack("=QII", ctypes.addressof(name), fd, 0), f"{path} cannot be pinned")
        fresh.replace(path)
    except OSError as error:
        raise HostError(f"{path} cannot be pinned: {error.strerror}") from None


def pinned(path: Path) -> int:
    """A descriptor for what is pinned there. Raises HostError."""
    name = ctypes.create_string_buffer(os.fsencode(path))
    return call(_OBJ_GET, struct.pack("=QII", ctypes.addressof(name), 0, 0), f"{path} cannot be opened")


def pinned_map(path: Path, spec: MapSpec) -> Map | None:
    """The map that is pinned there; None if there is none, or another one than the spec allows."""
    try:
        fd = pinned(path)
    except HostError:
        return None
    found = _spec(fd)
    if spec.allows(found):
        return Map(found, fd)
    os.close(fd)
    return None


def program_by_id(number: int) -> int:
    """A descriptor for a program that the kernel has. Raises HostError."""
    return call(_PROG_FD_BY_ID, struct.pack("=III", number, 0, 0), f"program {number} is gone")


def program_name(fd: int) -> str:
    """The name of a loaded program, of at most 15 characters."""
    return object_info(fd).raw[64:80].split(b"\0")[0].decode()  # struct bpf_prog_info: name


def program_id(fd: int) -> int:
    """The number of a loaded program, by which `program_by_id` finds it."""
    return int(struct.unpack_from("=I", object_info(fd), 4)[0])  # struct bpf_prog_info: id


def object_info(fd: int) -> ctypes.Array[ctypes.c_char]:
    """What the kernel tells of a map, program or link: struct bpf_map_info, bpf_prog_info, bpf_link_info."""
    info = ctypes.create_string_buffer(256)
    call(_OBJ_INFO, struct.pack("=IIQ", fd, 256, ctypes.addressof(info)), "the kernel tells nothing of it")
    return info


def _spec(fd: int) -> MapSpec:
    kind, _, key_size, value_size, entries, _, text = struct.unpack_from("=IIIIII16s", object_info(fd))
    name, _, layout = text.rstrip(b"\0").decode().partition(".")
    return MapSpec(name, kind, key_size, value_size, entries, layout)


def maps_of_program(fd: int, specs: tuple[MapSpec, ...]) -> dict[str, Map]:
    """The maps that a loaded program uses, as far as the specs allow them."""
    ids = (ctypes.c_uint32 * 64)()
    # struct bpf_prog_info: nr_map_ids at 52, map_ids at 56; the rest may stay zero.
    info = ctypes.create_string_buffer(256)
    struct.pack_into("=IQ", info, 52, 64, ctypes.addressof(ids))
    attribute = struct.pack("=IIQ", fd, 256, ctypes.addressof(info))
    call(_OBJ_INFO, attribute, "the program cannot be asked for its maps")
    found: dict[str, Map] = {}
    for number in ids[: struct.unpack_from("=I", info, 52)[0]]:
        map_fd = call(_MAP_FD_BY_ID, struct.pack("=III", number, 0, 0), f"map {number} is gone")
        spec = _spec(map_fd)
        if any(one.allows(spec) for one in specs):
            found[spec.name] = Map(spec, map_fd)
        else:
            os.close(map_fd)
    return found


def _relocated(object_file: Path, section: str, maps: dict[str, Map]) -> bytes:
    program = programs(object_file).get(section)
    if program is None:
        raise HostError(f"{object_file}: no program {section!r}")
    code = bytearray(program.code)
    # An instruction of two words: the map in the first one, in the second one where in its value.
    for offset, name in program.maps:
        code[offset + 1] = code[offset + 1] & 0x0F | _PSEUDO_MAP_FD << 4
        struct.pack_into("=i", code, offset + 4, maps[name].fd)
    for offset, name in program.values:
        code[offset + 1] = code[offset + 1] & 0x0F | _PSEUDO_MAP_VALUE << 4
        code[offset + 12 : offset + 16] = code[offset + 4 : offset + 8]
        struct.pack_into("=i", code, offset + 4, maps[name].fd)
    return bytes(code)


@lru_cache(4)
def programs(object_file: Path) -> dict[str, Program]:
    """Read the programs of an object file by their sections, once for each file."""
    found: dict[str, Program] = {}
    with object_file.open("rb") as stream:
        elf = ELFFile(stream)
        symbols = elf.get_section_by_name(".symtab")
        functions = elf.get_section_by_name(_FUNCTIONS)
        for body in elf.iter_sections():
            if not body["sh_flags"] & SH_FLAGS.SHF_EXECINSTR or body.name == _FUNCTIONS:
                continue
            code = bytearray(body.data())
            begin = len(code)
            used, read = [], []
            relocations = elf.get_section_by_name(f".rel{body.name}")
            for relocation in relocations.iter_relocations() if relocations is not None else ():
                offset = relocation["r_offset"]
                if relocation["r_info_type"] != _CALL:
                    symbol = symbols.get_symbol(relocation["r_info_sym"])
                    place = elf.get_section(symbol["st_shndx"]).name
                    if place.startswith(_VALUE):
                        read.append((offset, place.removeprefix(_VALUE)))
                    else:
                        used.append((offset, symbol.name))
                    continue
                # All functions stand behind the program; the instruction says where in their section this one begins.
                if len(code) == begin:
                    code += functions.data()
                inside = struct.unpack_from("=i", code, offset + 4)[0] + 1
                struct.pack_into("=i", code, offset + 4, begin // 8 + inside - (offset // 8 + 1))
            found[body.name] = Program(bytes(code), tuple(used), tuple(read))
    return found


def _possible_cpus() -> int:
    """How many CPUs the kernel is prepared for: `0-3` or `0,2-5` means up to the last number."""
    try:
        return int(_POSSIBLE_CPUS.read_text().replace("-", ",").split(",")[-1]) + 1
    except (OSError, ValueError):
        raise HostError(f"{_POSSIBLE_CPUS} cannot be read, so that per-CPU counters cannot be") from None


def call(command: int, attribute: bytes | ctypes.Array[ctypes.c_char], what: str) -> int:
    """Ask the kernel by bpf(2), in a buffer that it may answer into. Raises HostError that begins with `what`."""
    buffer = (
        ctypes.create_string_buffer(attribute, max(len(attribute), 128))
        if isinstance(attribute, bytes)
        else attribute
    )
    result = int(_libc.syscall(_SYS_BPF, command, buffer, len(buffer)))
    if result < 0:
        raise _error(what)
    return result


def _error(what: str) -> HostError:
    number = ctypes.get_errno()
    if number in (errno.EPERM, errno.EACCES):
        return PermissionDeniedError(f"{what}: {os.strerror(number)}; CAP_BPF and CAP_NET_ADMIN are needed")
    return HostError(f"{what}: {os.strerror(number)}")
