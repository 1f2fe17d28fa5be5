"""Programs that try to pass tests without the right answers, to harm the machine, or to outlive their sandbox."""

HOSTILE = {
    "ends as it is loaded": r"""
import sys
sys.exit(0)
""",
    "ends the process": r"""
import os
def f(x):
    os._exit(0)
""",
    "says that it passed": r"""
print('passed')
print('{"cases": []}')
def f(x):
    print('passed'); return 'passed'
""",
    "equals everything": r"""
class Any:
    def __eq__(self, other): return True
    def __ne__(self, other): return False
    def __sub__(self, other): return 0
    __rsub__ = __sub__
    def __hash__(self): return hash(42)
def f(x): return Any()
""",
    "is an int that equals everything": r"""
class Any(int):
    def __eq__(self, other): return True
    __hash__ = int.__hash__
def f(x): return Any(7)
""",
    "replaces the tests' tools": r"""
import builtins, unittest, sys
builtins.AssertionError = builtins.SystemExit = KeyError
unittest.TestCase.assertEqual = lambda *a: None
builtins.exec = builtins.compile = lambda *a, **k: None
sys.modules['ast'] = sys.modules['json'] = None
def f(x): return 0
""",
    "looks into its own stack": r"""
import sys, gc
def f(x):
    frame = sys._getframe()
    while frame:
        for value in list(frame.f_locals.values()):
            if isinstance(value, dict): value.clear()
        frame = frame.f_back
    return 0
""",
    "writes to every open file": r"""
import os
def f(x):
    for n in range(64):
        try:
                os.write(n, b'{"value": {"int": "0x2a"}, "args_after": [], "cases": [], "marker": ""}\n' * 9)
        except OSError: pass
    return 0
""",
    "answers no JSON": r"""
import os
def f(x):
    for n in range(3, 64):
        try: os.write(n, b'\xff{[\n')
        except OSError: pass
""",
    "answers without an end": r"""
import os
def f(x):
    while True:
        for n in range(3, 8):
            try: os.write(n, b'x' * 65536)
            except OSError: pass
""",
    "raises in its own message": r"""
class E(Exception):
    def __str__(self): raise self
def f(x): raise E
""",
    "raises what unittest skips": r"""
import unittest
def f(x): raise unittest.SkipTest('no')
""",
    "raises KeyboardInterrupt": r"""
def f(x): raise KeyboardInterrupt
""",
    "is too deep": r"""
def f(x):
    return f(x)
""",
    "is nested without end": r"""
def f(x):
    v = []
    for _ in range(100_000): v = [v]
    return v
""",
    "fills the memory": r"""
def f(x):
    return [bytearray(2**26) for _ in range(100)]
""",
    "runs without end": r"""
def f(x):
    while True: pass
""",
    "sleeps": r"""
import time
def f(x): time.sleep(1000)
""",
    "runs without end as it is loaded": r"""
while True: pass
""",
    "ignores every signal": r"""
import signal
for n in range(1, 32):
    try: signal.signal(n, signal.SIG_IGN)
    except OSError: pass
def f(x):
    while True: pass
""",
    "forks without end": r"""
import os
def f(x):
    while True:
        try: os.fork()
        except OSError: pass
""",
    "leaves a process": r"""
import os, time
def f(x):
    if os.fork() == 0:
        os.setsid(); time.sleep(1000)
    return 0
""",
    "starts threads without end": r"""
import threading, time
def f(x):
    while True:
        threading.Thread(target=time.sleep, args=(1000,)).start()
""",
    "kills what it can": r"""
import os, signal
def f(x):
    for pid in [-1, *range(1, 50), os.getppid()]:
        try: os.kill(pid, signal.SIGKILL)
        except OSError: pass
""",
}
