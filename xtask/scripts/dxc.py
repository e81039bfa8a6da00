"""python3 dxc.py LIBRARY FOLDER: compiles every .hlsl file of the folder with DXC, as wgpu for DirectX 12.

LIBRARY is libdxcompiler.so. A file's first line is `// ENTRY_POINT`. Warnings of DXC are not failures.
"""

import ctypes
import multiprocessing
import pathlib
import sys
import uuid

COMPILER = "73e22d93-e6ce-47f3-b5bf-f0664f39c1b0"  # CLSID_DxcCompiler
ICOMPILER3 = "228b4687-5a6a-4730-900c-9702b2203f54"  # IDxcCompiler3
IRESULT = "58346cda-dde7-4497-9461-6f87af5e0659"  # IDxcResult
UTF8 = 65001
# Places in vtables. The first three are IUnknown's, and outside of Windows two destructors follow them.
RELEASE, COMPILE = 2, 5
GET_STATUS, GET_RESULT, GET_ERROR_BUFFER = 5, 6, 7
BUFFER_POINTER, BUFFER_SIZE = 5, 6


class Buffer(ctypes.Structure):
    _fields_ = [("pointer", ctypes.c_char_p), ("size", ctypes.c_size_t), ("encoding", ctypes.c_uint32)]


def guid(text):
    return ctypes.create_string_buffer(uuid.UUID(text).bytes_le, 16)


def call(this, nth, *arguments, result=ctypes.c_int32):
    """Calls the nth function of an object."""
    table = ctypes.cast(this, ctypes.POINTER(ctypes.POINTER(ctypes.c_void_p)))[0]
    types = [type(argument) for argument in arguments]
    return ctypes.CFUNCTYPE(result, ctypes.c_void_p, *types)(table[nth])(this, *arguments)


def text(blob):
    size = call(blob, BUFFER_SIZE, result=ctypes.c_size_t)
    return ctypes.string_at(call(blob, BUFFER_POINTER, result=ctypes.c_void_p), size).decode(errors="replace")


def load(library):
    """Makes the compiler of this process."""
    global compiler
    compiler = ctypes.c_void_p()
    create = ctypes.CDLL(library).DxcCreateInstance
    if create(guid(COMPILER), guid(ICOMPILER3), ctypes.byref(compiler)) < 0:
        sys.exit(f"{library} has no IDxcCompiler3")


def compile(path):
    """What DXC says against a file, or None."""
    source = path.read_bytes()
    entry_point = source.split(b"\n", 1)[0].decode().removeprefix("// ")
    # As wgpu-hal's: 2018 is the version of the language, without HLSL 2021's templates.
    words = ["-E", entry_point, "-T", "cs_6_0", "-HV", "2018", "-no-warnings", "-Ges"]
    arguments = (ctypes.c_wchar_p * len(words))(*words)
    buffer, result = Buffer(source, len(source), UTF8), ctypes.c_void_p()
    status = call(
        compiler, COMPILE, ctypes.pointer(buffer), arguments, ctypes.c_uint32(len(words)), ctypes.c_void_p(),
        guid(IRESULT), ctypes.pointer(result),
    )
    if status < 0:
        return f"IDxcCompiler3::Compile: {status:#x}"
    errors, made, code = ctypes.c_void_p(), ctypes.c_void_p(), ctypes.c_int32()
    call(result, GET_STATUS, ctypes.pointer(code))
    call(result, GET_ERROR_BUFFER, ctypes.pointer(errors))
    call(result, GET_RESULT, ctypes.pointer(made))
    said = text(errors) if errors else ""
    size = call(made, BUFFER_SIZE, result=ctypes.c_size_t) if made else 0
    for each in (errors, made, result):
        if each:
            call(each, RELEASE)
    return said or "no message" if code.value < 0 or size == 0 else None


def main(library, folder):
    files = sorted(pathlib.Path(folder).glob("*.hlsl"))
    load(library)  # A pool whose processes cannot start never ends.
    with multiprocessing.Pool(initializer=load, initargs=(library,)) as pool:
        results = pool.map(compile, files, chunksize=8)
    failed = [(path, said) for path, said in zip(files, results) if said]
    for path, said in failed:
        print(f"{path.name}: {said}")
    print(f"DXC: {len(files) - len(failed)} passed, {len(failed)} failed")
    sys.exit(1 if failed or not files else 0)


if __name__ == "__main__":
    main(*sys.argv[1:])
