"""The names that no checkpoint needs and that run code where a pickle is loaded in good faith.

Nothing that a file names is ever imported or called here, so a name can do no harm to this reader:
it becomes a note of its two words. But a file that names one of these was made to do harm to
somebody, or to be run, and is refused whole, with the name.
"""

from __future__ import annotations

from trunkline.weights.reading.records import Global

# Modules, with all that is below them.
_MODULES = frozenset(
    {
        *("os", "posix", "nt", "ntpath", "posixpath", "sys", "subprocess", "_posixsubprocess"),
        *("importlib", "imp", "zipimport", "pkgutil", "runpy", "code", "codeop", "ast", "dis"),
        *(
            "pty",
            "tty",
            "commands",
            "popen2",
            "platform",
            "shutil",
            "tempfile",
            "glob",
            "fileinput",
        ),
        *("socket", "ssl", "socketserver", "http", "urllib", "urllib2", "ftplib", "smtplib"),
        *("telnetlib", "poplib", "imaplib", "xmlrpc", "webbrowser", "requests", "httpx", "aiohttp"),
        *("ctypes", "_ctypes", "cffi", "mmap", "signal", "resource", "gc", "atexit", "linecache"),
        *("pickle", "_pickle", "cPickle", "dill", "cloudpickle", "joblib", "marshal", "shelve"),
        *("pdb", "bdb", "cProfile", "profile", "timeit", "trace", "doctest", "unittest", "test"),
        *("multiprocessing", "concurrent", "asyncio", "_thread", "sched", "venv", "ensurepip"),
        *("pip", "setuptools", "distutils", "pkg_resources", "idlelib", "lib2to3", "inspect"),
        *(
            "antigravity",
            "this",
            "io",
            "_io",
            "builtin",
            "nntplib",
            "wsgiref",
            "sqlite3",
            "logging",
        ),
        *("torch.hub", "torch.jit", "torch.package", "torch.utils.cpp_extension", "torch.ops"),
        *("torch._inductor", "torch._dynamo", "torch.distributed.rpc", "torch.multiprocessing"),
        *("numpy.f2py", "numpy.distutils", "numpy.testing", "numpy.ctypeslib", "pandas.io"),
    }
)
# What of these is data all the same.
_HARMLESS = frozenset(
    {
        *(Global("logging", name) for name in ("Logger", "RootLogger", "getLogger")),
        Global("multiprocessing.managers", "Namespace"),
        *(Global("inspect", name) for name in ("Parameter", "Signature", "_ParameterKind")),
    }
)
_NAMES = frozenset(
    {
        *(
            Global("builtins", name)
            for name in (
                *("eval", "exec", "execfile", "compile", "open", "__import__", "reload", "apply"),
                *("input", "raw_input", "breakpoint", "globals", "locals", "vars", "super"),
                *("setattr", "delattr", "exit", "quit", "help", "memoryview", "classmethod"),
            )
        ),
        *(Global("copyreg", name) for name in ("add_extension", "remove_extension", "pickle")),
        *(Global("operator", name) for name in ("attrgetter", "methodcaller")),
        *(Global("types", name) for name in ("FunctionType", "LambdaType", "CodeType")),
        *(Global("types", name) for name in ("MethodType", "ModuleType", "new_class")),
        *(Global("numpy", name) for name in ("load", "fromfile", "genfromtxt", "loadtxt", "save")),
        *(Global("numpy.lib.npyio", name) for name in ("load", "NpzFile")),
        *(Global("torch", name) for name in ("load", "save", "compile", "hub", "jit", "ops")),
        *(Global("torch.serialization", name) for name in ("load", "save", "_load")),
        Global("torch._utils", "_import_dotted_name"),
        Global("typing", "get_type_hints"),
        Global("collections", "namedtuple"),
    }
)


def is_refused(asked: Global) -> bool:
    """Return whether a file that names this is refused whole."""
    if asked in _HARMLESS:
        return False
    parts = asked.module.split(".")
    if any(".".join(parts[:n]) in _MODULES for n in range(1, len(parts) + 1)):
        return True
    # A name that walks: from a class to what is behind it, or through a module's own imports.
    words = asked.name.split(".")
    if any(word.startswith("__") and not word.startswith(_MAKERS) for word in words):
        return True
    walks = len(words) > 1 and (words[0].islower() or words[0].startswith("_"))
    return walks or asked in _NAMES


# How copyreg makes an object of protocol 2 in a pickle of an older one, and numpy its generators.
_MAKERS = ("__newobj", "__randomstate_ctor", "__generator_ctor", "__bit_gen", "__pyx_unpickle_")
