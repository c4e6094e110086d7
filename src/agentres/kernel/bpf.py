"""bpf(2): load a compiled program, attach it to a cgroup, find again what is attached there.

The programs are C (:mod:`agentres.kernel.network`), compiled in development.  The object file has a section
for each, and one data section that they share.  :func:`parse` reads it, :func:`load` gives it to the
kernel.  Loading needs CAP_BPF, and CAP_NET_ADMIN for what these programs do.
"""

from __future__ import annotations

import ctypes
import os
import struct

from agentres.kernel.libc import LIBC, call, failure
from agentres.model.record import TYPE_CHECKING, Record

if TYPE_CHECKING:
    from collections.abc import Mapping
    from typing import Any

INGRESS, EGRESS = 0, 1
"""BPF_CGROUP_INET_INGRESS and BPF_CGROUP_INET_EGRESS (enum bpf_attach_type)."""

# enum bpf_cmd
_MAP_CREATE, _PROG_LOAD, _PROG_ATTACH = 0, 5, 8
_PROG_DETACH, _PROG_GET_NEXT_ID = 9, 11
_PROG_GET_FD_BY_ID, _MAP_GET_FD_BY_ID, _OBJ_GET_INFO_BY_FD, _PROG_QUERY = 13, 14, 15, 16

_PROG_TYPE_CGROUP_SKB = 8
_MAP_TYPE_ARRAY = 2
_F_MMAPABLE = 1 << 10
_F_ALLOW_MULTI = 1 << 1
_PSEUDO_MAP_VALUE = 2

_NUMBERS = {"x86_64": 321, "aarch64": 280, "riscv64": 280, "ppc64le": 361, "s390x": 351}
"""The number of the bpf system call, by machine (asm/unistd.h)."""

_PROT_READ, _PROT_WRITE, _MAP_SHARED = 1, 2, 1
_MAP_FAILED = ctypes.c_void_p(-1).value

_ATTR_SIZE = 152
_LOG_SIZE = 1 << 16
_PROGRAMS_MOST = 64
"""The most programs on one cgroup and attach type: BPF_CGROUP_MAX_PROGS in kernel/bpf/cgroup.c."""


class ObjectFile(Record):
    """The contents of an object file: the programs' instructions, their references to the data, the initial data.

    ``places`` are the offsets of the instructions that load an address in the data; the instruction itself holds
    that address.
    """

    programs: Mapping[str, bytes]
    places: Mapping[str, tuple[int, ...]]
    data: bytes


class Program(Record):
    """A loaded program: its number, its name, and the numbers of its maps."""

    id: int
    name: str
    maps: tuple[int, ...]


_HEADER = struct.Struct("<16sHHIQQQIHHHHHH")
_SECTION = struct.Struct("<IIQQQQIIQQ")
_SYMBOL = struct.Struct("<IBBHQQ")
_RELOCATION = struct.Struct("<QQ")
_SHT_SYMTAB, _SHT_REL = 2, 9
_EM_BPF = 247
_R_BPF_64_64 = 1


def parse(image: bytes) -> ObjectFile:
    """Parse an ELF object for BPF (elf(5)) whose only data section is ``.data``; ValueError for any other."""
    try:
        return _parse(image)
    except (struct.error, IndexError) as error:
        raise ValueError(f"no object file: {error}") from None


def _parse(image: bytes) -> ObjectFile:
    header = _HEADER.unpack_from(image)
    if header[0][:6] != b"\x7fELF\x02\x01" or header[2] != _EM_BPF:
        raise ValueError("no object file for BPF, 64 bits, little-endian")
    start, size, number, names_at = header[6], *header[11:14]
    sections = [_SECTION.unpack_from(image, start + at * size) for at in range(number)]

    def contents(section: tuple[int, ...]) -> bytes:
        return image[section[4] : section[4] + section[5]]

    strings = contents(sections[names_at])

    def name(section: tuple[int, ...]) -> str:
        return strings[section[0] : strings.index(b"\0", section[0])].decode()

    data_at = next(at for at in range(number) if name(sections[at]) == ".data")
    symbols = contents(next(s for s in sections if s[1] == _SHT_SYMTAB))
    programs = {name(s): contents(s) for s in sections if name(s).startswith("cgroup_skb/")}
    places: dict[str, tuple[int, ...]] = dict.fromkeys(programs, ())
    for section in sections:
        if section[1] != _SHT_REL or (target := name(sections[section[7]])) not in programs:
            continue
        code, found = bytearray(programs[target]), list[int]()
        for where, info in _RELOCATION.iter_unpack(contents(section)):
            symbol = _SYMBOL.unpack_from(symbols, (info >> 32) * _SYMBOL.size)
            if info & 0xFFFFFFFF != _R_BPF_64_64 or symbol[3] != data_at:
                raise ValueError(f"{target}: a relocation that is not of its data")
            (addend,) = struct.unpack_from("<i", code, where + 4)
            struct.pack_into("<i", code, where + 4, addend + symbol[4])
            found.append(where)
        programs[target], places[target] = bytes(code), tuple(found)
    return ObjectFile(programs, places, contents(sections[data_at]))


def link(object_file: ObjectFile, program: str, map_fd: int) -> bytes:
    """Return the program's instructions, with its data references pointed to the map ``map_fd``."""
    code = bytearray(object_file.programs[program])
    for where in object_file.places[program]:
        # struct bpf_insn: code, registers, offset, imm; a 64-bit load takes two.
        (offset,) = struct.unpack_from("<i", code, where + 4)
        code[where + 1] = code[where + 1] & 0x0F | _PSEUDO_MAP_VALUE << 4
        struct.pack_into("<i", code, where + 4, map_fd)
        struct.pack_into("<i", code, where + 12, offset)
    return bytes(code)


def create_map(size: int, name: str) -> int:
    """Create a map with one value of ``size`` bytes that can be mapped into memory; return its fd.  OSError."""
    attr = struct.pack("<IIIIIII16s", _MAP_TYPE_ARRAY, 4, size, 1, _F_MMAPABLE, 0, 0, name.encode())
    return _bpf(_MAP_CREATE, attr)


def load(code: bytes, attach_type: int, name: str) -> int:
    """Load a program for :func:`attach`; return its fd.  OSError, with the verifier's last lines."""
    instructions = ctypes.create_string_buffer(code, len(code))
    license_ = ctypes.create_string_buffer(b"GPL")

    def attempt(level: int, log: Any = None) -> int:
        attr = struct.pack(
            "<IIQQIIQII16sII", _PROG_TYPE_CGROUP_SKB, len(code) // 8, ctypes.addressof(instructions),
            ctypes.addressof(license_), level, _LOG_SIZE if level else 0,
            ctypes.addressof(log) if log else 0, 0, 0, name.encode(), 0, attach_type,
        )  # fmt: skip
        return _bpf(_PROG_LOAD, attr)

    try:
        return attempt(0)
    except OSError as error:
        if error.errno == 1:  # EPERM: the verifier did not run
            raise
    log = ctypes.create_string_buffer(_LOG_SIZE)
    try:  # again with the log, which costs time, but says what the verifier rejects
        return attempt(1, log)
    except OSError as error:
        words = log.value.decode(errors="replace").strip().splitlines()
        raise OSError(error.errno, f"{error.strerror}: {' '.join(words[-3:])}") from None


def share_map(fd: int, size: int) -> Any:
    """Map the first ``size`` bytes of the map's only value into memory, shared with the kernel.  OSError.

    By mmap(2), without Python's mmap module: that is one more library in memory beside an agent.
    """
    mmap = LIBC.mmap
    mmap.restype = ctypes.c_void_p
    mmap.argtypes = [ctypes.c_void_p, ctypes.c_size_t, *[ctypes.c_int] * 3, ctypes.c_long]
    address = mmap(None, size, _PROT_READ | _PROT_WRITE, _MAP_SHARED, fd, 0)
    if address == _MAP_FAILED:
        raise failure("mmap")
    return (ctypes.c_char * size).from_address(address)


def unshare_map(shared: Any) -> None:
    """Unmap it; it must not be accessed afterwards."""
    call("munmap", ctypes.c_void_p(ctypes.addressof(shared)), ctypes.c_size_t(len(shared)))


def attach(cgroup: int, program: int, attach_type: int) -> None:
    """Attach a program to the open cgroup, beside those already there; it vanishes with the cgroup.  OSError."""
    _bpf(_PROG_ATTACH, struct.pack("<IIIII", cgroup, program, attach_type, _F_ALLOW_MULTI, 0))


def detach(cgroup: int, number: int, attach_type: int) -> None:
    """Detach the program with this number from the open cgroup.  OSError."""
    fd = _bpf(_PROG_GET_FD_BY_ID, struct.pack("<I", number))
    try:
        _bpf(_PROG_DETACH, struct.pack("<III", cgroup, fd, attach_type))
    finally:
        os.close(fd)


def attached(cgroup: int, attach_type: int) -> list[int]:
    """Return the numbers of the programs attached to the open cgroup itself.  OSError."""
    ids = (ctypes.c_uint32 * _PROGRAMS_MOST)()
    attr = struct.pack("<IIIIQI", cgroup, attach_type, 0, 0, ctypes.addressof(ids), len(ids))
    _, answer = _call(_PROG_QUERY, attr)
    return list(ids[: struct.unpack_from("<I", answer, 24)[0]])


def program(number: int) -> Program:
    """Return the program with this number.  OSError."""
    fd = _bpf(_PROG_GET_FD_BY_ID, struct.pack("<I", number))
    try:
        ids = (ctypes.c_uint32 * 8)()
        info = bytearray(232)  # struct bpf_prog_info
        struct.pack_into("<IIQ", info, 52, len(ids), 0, 0)
        struct.pack_into("<Q", info, 56, ctypes.addressof(ids))
        view = (ctypes.c_char * len(info)).from_buffer(info)
        _bpf(_OBJ_GET_INFO_BY_FD, struct.pack("<IIQ", fd, len(info), ctypes.addressof(view)))
        del view
    finally:
        os.close(fd)
    count = min(struct.unpack_from("<I", info, 52)[0], len(ids))
    return Program(number, bytes(info[64:80]).rstrip(b"\0").decode(), tuple(ids[:count]))


def programs() -> set[int]:
    """Return the numbers of all programs loaded on this host.  OSError."""
    found, last = set[int](), 0
    while True:
        try:
            _, answer = _call(_PROG_GET_NEXT_ID, struct.pack("<II", last, 0))
        except FileNotFoundError:
            return found
        (last,) = struct.unpack_from("<I", answer, 4)
        found.add(last)


def open_map(number: int) -> int:
    """Open the map with this number; return its fd.  OSError."""
    return _bpf(_MAP_GET_FD_BY_ID, struct.pack("<I", number))


def _bpf(command: int, attr: bytes) -> int:
    return _call(command, attr)[0]


def _call(command: int, attr: bytes) -> tuple[int, bytes]:
    number = _NUMBERS.get(os.uname().machine)
    if number is None:
        raise OSError(38, f"bpf(2) is not known here for {os.uname().machine}")  # ENOSYS
    buffer = ctypes.create_string_buffer(attr, _ATTR_SIZE)
    result = call("syscall", number, command, buffer, _ATTR_SIZE)
    return result, buffer.raw
