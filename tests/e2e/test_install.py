"""make install and uninstall: what is put where, that pages and units are sound, that it goes."""

import os
import shutil
import subprocess

import lib


def make(target, root):
    """As the Makefile does, without building anew."""
    env = dict(os.environ, DESTDIR=str(root), PREFIX="/usr", O=str(lib.BUILD))
    done = subprocess.run([lib.ROOT / "daemon/dist/install.sh", target], env=env,
                          capture_output=True, check=False, timeout=60 * lib.SLOW)
    assert done.returncode == 0, done.stderr.decode()


def left(root):
    return sorted(str(p.relative_to(root)) for p in root.rglob("*") if p.is_file())


def check_pages(root):
    pages = [p for p in (root / "usr/share/man").rglob("*") if p.is_file()]
    names = {p.name for p in pages}
    commands = lib.silt("ipc:///none", "--help").out.decode().split("Commands")[1].split("\n\n")[0]
    for line in commands.splitlines()[1:]:
        assert f"silt-{line.split()[0]}.1" in names, line
    assert {"silt.1", "siltd.8"} <= names
    if not shutil.which("groff"):
        return
    for page in pages:
        done = subprocess.run(["groff", "-man", "-Tutf8", "-Kutf8", "-ww", page],
                              capture_output=True, check=False)
        assert done.returncode == 0 and not done.stderr, (page.name, done.stderr.decode())
        assert len(done.stdout) > 500, page.name


def check_units(root):
    units = root / "usr/lib/systemd/system"
    for unit in units.iterdir():
        text = unit.read_text()
        assert "@PREFIX@" not in text and "NoNewPrivileges=yes" in text
        unit.write_text(text.replace("/usr/bin/", f"{root}/usr/bin/"))
    if not shutil.which("systemd-analyze"):
        return
    (units / "silt-feed@x.service").write_text((units / "silt-feed@.service").read_text())
    for name in ("siltd", "silt-feed@x", "silt-gateway"):
        done = subprocess.run(["systemd-analyze", "verify", "--man=no",
                               units / f"{name}.service"], capture_output=True, check=False)
        said = [line for line in done.stderr.decode().splitlines() if "silt" in line]
        assert not said, said
    (units / "silt-feed@x.service").unlink()


def complete(root, endpoint, *words):
    script = ('source "$1"; shift; COMP_WORDS=("$@"); COMP_CWORD=$(($# - 1)); _silt; '
              'printf "%s\\n" "${COMPREPLY[@]}"')
    env = dict(os.environ, SILT_ENDPOINT=endpoint)
    done = subprocess.run(["bash", "-c", script, "bash",
                           root / "usr/share/bash-completion/completions/silt", *words],
                          capture_output=True, check=True, env=env)
    return done.stdout.decode().split()


def test_install_and_uninstall():
    root = lib.folder()
    make("install", root)
    assert {"usr/bin/silt", "usr/bin/siltd", "usr/bin/silt-gateway", "etc/silt/siltd.conf",
            "usr/lib/silt/get-model", "usr/share/silt/adapters/smollm2-135m-instruct.gguf"
            } <= set(left(root))
    (root / "etc/silt/siltd.conf").write_text("memory = 1G\n")
    check_pages(root)
    make("install", root)
    assert (root / "etc/silt/siltd.conf").read_text() == "memory = 1G\n"
    check_units(root)
    done = subprocess.run([root / "usr/bin/silt", "gateway", "--help"], capture_output=True,
                          check=True)
    assert b"silt gateway [options]" in done.stdout
    make("uninstall", root)
    assert left(root) == ["etc/silt/siltd.conf"], left(root)


def test_completion():
    root = lib.folder()
    make("install", root)
    silt, siltd = root / "usr/bin/silt", root / "usr/bin/siltd"
    with lib.Daemon(*lib.tiny()) as daemon:
        lib.silt(daemon.endpoint, "open", "alpha")
        lib.silt(daemon.endpoint, "open", "alps")
        assert complete(root, daemon.endpoint, silt, "f")[0] == "feed"
        assert complete(root, daemon.endpoint, silt, "ask", "al") == ["alpha", "alps"]
        assert complete(root, "ipc:///none", silt, "-c", daemon.endpoint, "rm", "alpha",
                        "al") == ["alpha", "alps"]
        assert "--recall" in complete(root, daemon.endpoint, silt, "ask", "alpha", "--r")
        assert complete(root, daemon.endpoint, silt, "ask", "s", "--recall", "t") == ["text"]
        assert complete(root, daemon.endpoint, siltd, "--when-full", "") == ["stop", "trim"]
        assert "--listen" in complete(root, daemon.endpoint, siltd, "--l")


if __name__ == "__main__":
    lib.main(globals())
