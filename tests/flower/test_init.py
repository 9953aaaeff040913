import datetime
import gzip
import ipaddress
import json
import os
import shutil
import ssl
import stat
import subprocess
import sys
import tarfile
import tomllib
from configparser import RawConfigParser
from pathlib import Path

import pytest
import yaml
from cryptography import x509
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import (
    Encoding,
    PublicFormat,
    load_pem_private_key,
    load_ssh_private_key,
    load_ssh_public_key,
)
from cryptography.x509 import DNSName, IPAddress
from cryptography.x509.oid import ExtendedKeyUsageOID
from cryptography.x509.verification import PolicyBuilder, Store, VerificationError
from flwr.supercore.address import parse_address
from flwr.supercore.primitives.asymmetric import uses_nist_ec_curve

from fedit.cli.app import app
from fedit.cli.errors import run_and_exit
from fedit.errors import ConfigError, RunFolderError
from fedit.flower import certificates
from fedit.flower.init import create
from fedit.flower.layout import Deployment, Site, check_host, check_sites, split_address

SITES = ["hospital-a", "hospital-b"]
BUNDLE = {
    "site.toml",
    "policy.toml",
    "GUIDE.md",
    "node.key",
    "ca.crt",
    "docker/Dockerfile",
    "docker/compose.yaml",
    "systemd/fedit-node.service",
}
HOST = "fl.example.org"


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """A deployment of two sites; not to be changed."""
    return create(tmp_path_factory.mktemp("made") / "ward", SITES, HOST)


@pytest.fixture
def fedit(capsys, monkeypatch):
    """Call the command line as the shell does; returns exit code, standard output and standard error."""
    monkeypatch.setenv("COLUMNS", "120")

    def call(*arguments):
        capsys.readouterr()
        with pytest.raises(SystemExit) as left:
            run_and_exit(app, [str(argument) for argument in arguments])
        text = capsys.readouterr()
        return left.value.code, text.out, text.err

    return call


def certificates_in(path):
    return x509.load_pem_x509_certificates(path.read_bytes())


def mode(path):
    return stat.S_IMODE(path.stat().st_mode)


def files_below(folder):
    return {path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file()}


def verify(deployment, name, roots=None):
    """Verify the server's certificate for a name as a TLS client of the ``cryptography`` library would."""
    leaf, *rest = certificates_in(deployment.server_crt)
    store = Store(roots or certificates_in(deployment.ca_crt))
    subject = DNSName(name) if ":" not in name and not name[0].isdigit() else IPAddress(ipaddress.ip_address(name))
    return PolicyBuilder().store(store).build_server_verifier(subject).verify(leaf, rest)


# --- certificates and keys ---


@pytest.mark.check(2)
@pytest.mark.parametrize("name", [HOST, "127.0.0.1", "::1", "localhost"])
def test_the_server_certificate_verifies_for_every_name_it_is_reached_by(made, name):
    assert len(verify(made, name)) == 2


def test_the_server_certificate_is_good_for_no_other_name(made):
    with pytest.raises(VerificationError):
        verify(made, "other.example.org")


def test_another_ca_does_not_verify(made):
    with pytest.raises(VerificationError):
        verify(made, HOST, [certificates.make_ca("ward").certificate])


def test_names_of_a_certificate_have_their_types():
    ca = certificates.make_ca("x" * 200)
    made = certificates.make_server_certificate(ca, ["fl.example.org", "192.0.2.7", "2001:db8::7", "localhost"])
    names = made.certificate.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
    assert names.get_values_for_type(DNSName) == ["fl.example.org", "localhost"]
    assert [str(address) for address in names.get_values_for_type(IPAddress)] == [
        "192.0.2.7", "2001:db8::7", "127.0.0.1", "::1",
    ]  # fmt: skip


def test_what_certificates_may_be_used_for(made):
    leaf, root = certificates_in(made.server_crt)
    assert [root] == certificates_in(made.ca_crt)
    basic = [c.extensions.get_extension_for_class(x509.BasicConstraints) for c in (leaf, root)]
    assert [(b.critical, b.value.ca, b.value.path_length) for b in basic] == [(True, False, None), (True, True, 0)]
    usage = [c.extensions.get_extension_for_class(x509.KeyUsage).value for c in (leaf, root)]
    assert [(u.digital_signature, u.key_cert_sign) for u in usage] == [(True, False), (False, True)]
    extended = leaf.extensions.get_extension_for_class(x509.ExtendedKeyUsage).value
    assert list(extended) == [ExtendedKeyUsageOID.SERVER_AUTH]


def test_certificates_are_valid_now_and_for_years_even_where_clocks_are_wrong(made):
    now = datetime.datetime.now(datetime.UTC)
    for found in certificates_in(made.server_crt):
        assert found.not_valid_before_utc < now - datetime.timedelta(hours=20)
        assert found.not_valid_after_utc > now + datetime.timedelta(days=4 * 365)


def test_private_keys_belong_to_their_certificates(made):
    for key_file, certificate in (
        (made.ca_key, certificates_in(made.ca_crt)[0]),
        (made.server_key, certificates_in(made.server_crt)[0]),
    ):
        key = load_pem_private_key(key_file.read_bytes(), None)
        assert isinstance(key.curve, ec.SECP384R1)
        assert key.public_key() == certificate.public_key()


@pytest.mark.check(2)
@pytest.mark.parametrize("site", SITES)
def test_node_keys_are_what_flower_takes(made, site):
    private = load_ssh_private_key((made.bundle(site) / "node.key").read_bytes(), None)
    public = load_ssh_public_key(made.public_key(site).read_bytes())
    assert isinstance(private.curve, ec.SECP384R1)
    assert private.public_key() == public
    assert uses_nist_ec_curve(public)
    assert made.public_key(site).read_text().endswith(f" {site}\n")


def test_every_site_has_a_key_of_its_own(made):
    points = {
        load_ssh_public_key(made.public_key(site).read_bytes()).public_bytes(
            Encoding.X962, PublicFormat.CompressedPoint
        )
        for site in SITES
    }
    assert len(points) == len(SITES)


def test_python_connects_over_tls_with_the_bundle_alone(made):
    server = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    server.load_cert_chain(made.server_crt, made.server_key)
    client = ssl.create_default_context(cafile=Site.load(made.bundle("hospital-a")).ca_crt)
    client.verify_flags |= ssl.VERIFY_X509_STRICT
    ends = [ssl.MemoryBIO(), ssl.MemoryBIO()]
    sides = [
        client.wrap_bio(ends[0], ends[1], server_hostname=HOST),
        server.wrap_bio(ends[1], ends[0], server_side=True),
    ]
    for _ in range(4):
        for side in sides:
            try:
                side.do_handshake()
            except ssl.SSLWantReadError:
                continue
    assert sides[0].getpeercert()["subject"] == ((("commonName", HOST),),)


@pytest.mark.skipif(os.name != "posix", reason="modes of files are POSIX's")
def test_what_is_private_can_be_read_by_its_owner_alone(made):
    private = {"certs/ca.key", "certs/server.key"}
    private |= {f"sites/{site}{end}" for site in SITES for end in ("/node.key", ".tar.gz")}
    assert {name for name in files_below(made.folder) if mode(made.folder / name) == 0o600} == private
    assert [mode(folder) for folder in (made.certs, made.bundles, made.state)] == [0o700] * 3


@pytest.mark.check(2)
@pytest.mark.skipif(os.name != "posix", reason="modes of files are POSIX's")
def test_private_files_are_private_from_the_start_whatever_the_umask(tmp_path, monkeypatch):
    opened = {}
    real = os.open

    def watched(path, flags, mode=0o777, **others):
        descriptor = real(path, flags, mode, **others)
        if flags & os.O_CREAT:
            name = Path(path).name
            opened[name] = (bool(flags & os.O_EXCL), stat.S_IMODE(os.fstat(descriptor).st_mode))
        return descriptor

    monkeypatch.setattr(os, "open", watched)
    before = os.umask(0)
    try:
        create(tmp_path / "open", ["a"], HOST)
    finally:
        os.umask(before)
    for name in ("ca.key", "server.key", "node.key", "a.tar.gz"):
        assert opened[name] == (True, 0o600)
    assert opened["ca.crt"] == (True, 0o644)


# --- folder and bundles ---


def test_a_deployment_is_read_as_it_was_made(made):
    again = Deployment.load(made.folder)
    assert again == made
    assert (again.name, again.host, again.port, again.sites) == ("ward", HOST, 8000, tuple(SITES))
    assert again.address == "fl.example.org:8000"
    assert not again.insecure


def test_the_deployment_holds_what_is_needed_and_no_leftovers(made):
    own = {name for name in files_below(made.folder) if not name.startswith("sites/")}
    assert own == {
        "deployment.toml", "certs/ca.crt", "certs/ca.key", "certs/server.crt", "certs/server.key",
        "keys/hospital-a.pub", "keys/hospital-b.pub", "docker/Dockerfile", "docker/compose.yaml",
        "systemd/fedit-server.service", "proxy/nginx.conf",
    }  # fmt: skip
    assert made.runs.is_dir()
    assert [path.name for path in made.folder.parent.iterdir()] == ["ward"]


@pytest.mark.parametrize("site", SITES)
def test_a_bundle_is_all_that_an_operator_needs(made, site):
    assert files_below(made.bundle(site)) == BUNDLE
    found = Site.load(made.bundle(site))
    assert (found.name, found.server, found.insecure) == (site, "fl.example.org:8000", False)
    assert found.ca_crt.read_bytes() == made.ca_crt.read_bytes()
    assert all((found.ca_crt.is_file(), found.node_key.is_file(), found.policy.is_file()))
    assert found.state == made.bundle(site) / "state"


def test_a_packed_bundle_unpacks_to_the_same_files_and_modes(made, tmp_path):
    with tarfile.open(made.archive("hospital-a"), "r:gz") as archive:
        assert {(member.uid, member.gid, member.uname, member.mtime) for member in archive} == {(0, 0, "", 0)}
        archive.extractall(tmp_path, filter="data")
    unpacked, packed = tmp_path / "hospital-a", made.bundle("hospital-a")
    assert files_below(unpacked) == BUNDLE
    for name in BUNDLE:
        assert (unpacked / name).read_bytes() == (packed / name).read_bytes()
        assert mode(unpacked / name) == mode(packed / name)
    assert Site.load(unpacked).name == "hospital-a"


def test_no_bundle_holds_what_belongs_to_others(made):
    secrets = [
        made.ca_key.read_bytes(),
        made.server_key.read_bytes(),
        (made.bundle("hospital-b") / "node.key").read_bytes(),
    ]
    unpacked = gzip.decompress(made.archive("hospital-a").read_bytes())
    assert (made.bundle("hospital-a") / "node.key").read_bytes() in unpacked
    assert not any(secret in unpacked for secret in secrets)


def test_the_guide_fits_on_a_page_and_names_the_site_and_the_server(made):
    text = (made.bundle("hospital-b") / "GUIDE.md").read_text()
    assert text.startswith("# hospital-b:")
    assert "fl.example.org:8000" in text
    assert "fedit deploy node . --data rows.jsonl" in text
    assert len(text.splitlines()) <= 60
    assert max(map(len, text.splitlines())) <= 120


def test_the_policy_states_safe_limits(made):
    policy = tomllib.loads((made.bundle("hospital-a") / "policy.toml").read_text())
    assert not policy["allow_custom_code"]
    assert {"models", "max_rounds", "max_steps", "max_rank", "strategies", "allow_statistics"} <= set(policy)
    assert {"min_noise_multiplier", "max_message_megabytes"} <= set(policy)


@pytest.mark.parametrize(
    ("host", "address"),
    [("2001:DB8::7", "[2001:db8::7]:9000"), ("[::1]", "[::1]:9000"), ("FL.example.org", "fl.example.org:9000")],
)
def test_addresses_are_written_as_flower_reads_them(tmp_path, host, address):
    made = create(tmp_path / "d", ["a"], host, 9000)
    assert made.address == Site.load(made.bundle("a")).server == address
    parsed = parse_address(address)
    assert parsed is not None
    assert parsed[:2] == split_address(address) == (made.host, 9000)
    verify(made, made.host)


def test_without_tls_there_is_nothing_that_needs_it(tmp_path):
    made = create(tmp_path / "trial", ["a"], "localhost", insecure=True)
    assert files_below(made.folder) == {
        "deployment.toml", "keys/a.pub", "sites/a.tar.gz", "sites/a/GUIDE.md", "sites/a/node.key",
        "sites/a/policy.toml", "sites/a/site.toml",
    }  # fmt: skip
    assert Site.load(made.bundle("a")).insecure
    assert "systemd" not in (made.bundle("a") / "GUIDE.md").read_text()


# --- refusals ---


def test_a_deployment_is_never_overwritten(made):
    before = {name: (made.folder / name).read_bytes() for name in files_below(made.folder)}
    with pytest.raises(ConfigError, match="holds a deployment already"):
        create(made.folder, ["other"], HOST)
    assert {name: (made.folder / name).read_bytes() for name in files_below(made.folder)} == before


@pytest.mark.parametrize("kind", ["folder", "file", "dangling"])
def test_nothing_else_is_overwritten_either(tmp_path, kind):
    out = tmp_path / "out"
    if kind == "folder":
        out.mkdir()
        (out / "thesis.txt").write_text("precious")
    elif kind == "file":
        out.write_text("precious")
    else:
        out.symlink_to(tmp_path / "nowhere")
    with pytest.raises(ConfigError, match="exists already"):
        create(out, ["a"], HOST)
    assert [path.name for path in tmp_path.iterdir()] == ["out"]


def test_an_empty_folder_is_used(tmp_path):
    (tmp_path / "out").mkdir()
    assert create(tmp_path / "out", ["a"], HOST).sites == ("a",)


def test_a_failure_leaves_nothing_behind(tmp_path, monkeypatch):
    def full(site):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(certificates, "make_node_key", full)
    with pytest.raises(RunFolderError, match="No space left"):
        create(tmp_path / "out", ["a"], HOST)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    "name", ["", "Hospital", "a/b", "..", "a b", "-a", "a-", "a.b", "hôpital", "a" * 64, "a\n", 'a"b', 7]
)
def test_site_names_that_cannot_name_a_folder_are_refused(name):
    with pytest.raises(ConfigError, match="site name"):
        check_sites(["fine", name])


def test_sites_are_there_and_differ():
    with pytest.raises(ConfigError, match="no site"):
        check_sites([])
    with pytest.raises(ConfigError, match="named twice: a;"):
        check_sites(["a", "b", "a"])
    assert check_sites(["a", "hospital-7", "a" * 63]) == ("a", "hospital-7", "a" * 63)


@pytest.mark.parametrize(
    "host",
    ["", "http://fl.example.org", "fl.example.org:8000", "0.0.0.0", "::", "[::]", "a b", "-a.org", "a..b",
     "1.2.3", "1.2.3.400", "x" * 64, "a.b\n", "höst", "a_b", "$(id)"],
)  # fmt: skip
def test_hosts_that_sites_cannot_reach_are_refused(host):
    with pytest.raises(ConfigError, match="host"):
        check_host(host)


@pytest.mark.parametrize("host", ["192.168.0.1", HOST, "0.0.0.0", "127.0.0.2", "localhost.example.org", "::2"])
def test_insecure_is_refused_anywhere_but_on_loopback(fedit, tmp_path, host):
    code, _, err = fedit("deploy", "init", "--sites", "a", "--host", host, "--insecure", "--out", tmp_path / "d")
    assert code == 2
    assert "Traceback" not in err
    assert host in err
    assert not (tmp_path / "d").exists()
    if host != "0.0.0.0":
        assert "127.0.0.1, ::1 or localhost" in err


@pytest.mark.parametrize("host", ["127.0.0.1", "::1", "localhost"])
def test_insecure_is_allowed_on_loopback(fedit, tmp_path, host):
    code, _, _ = fedit("deploy", "init", "--sites", "a", "--host", host, "--insecure", "--out", tmp_path / "d")
    assert code == 0
    assert Deployment.load(tmp_path / "d").insecure


# --- reading folders that people changed ---


@pytest.fixture
def changed(made, tmp_path):
    """Return the folder of a copy, one of whose files says something else."""

    def change(old="", new="", file="deployment.toml"):
        folder = tmp_path / "copy"
        shutil.copytree(made.folder, folder)
        text = (folder / file).read_text()
        assert old in text
        (folder / file).write_text(text.replace(old, new, 1))
        return folder

    return change


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ("port = 8000", 'port = "8000"', "port is '8000'; expected a number"),
        ("port = 8000", "port = true", "port is True; expected a number"),
        ("port = 8000", "port = 0", "port 0 is no port"),
        ("port = 8000", "", "port missing"),
        ("port =", "prot =", "unknown key 'prot'; did you mean 'port'"),
        ("insecure = false", "insecure = true", "insecure .* not fl.example.org"),
        ("hospital-b", "hospital-a", "named twice"),
        ("hospital-b", "../b", "site name '../b'"),
        ('"hospital-b"', "7", "site name 7"),
        ("fl.example.org", "http://x", "host 'http://x'"),
        ("port = 8000", "port = ", "Invalid"),
    ],
)
def test_a_changed_deployment_file_is_refused_with_its_name(changed, old, new, message):
    with pytest.raises(ConfigError, match=message) as refused:
        Deployment.load(changed(old, new))
    assert "deployment.toml: " in str(refused.value)


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        (':8000"', '"', "has no port"),
        (':8000"', ':80000"', "port 80000"),
        ("hospital-a", "../a", "site name"),
        ("insecure = false", "insecure = true", "insecure"),
    ],
)
def test_a_changed_site_file_is_refused_with_its_name(changed, old, new, message):
    file = "sites/hospital-a/site.toml"
    with pytest.raises(ConfigError, match=message) as refused:
        Site.load(changed(old, new, file) / "sites" / "hospital-a")
    assert "site.toml: " in str(refused.value)


def test_a_folder_without_deployment_or_site_says_what_to_do(tmp_path):
    with pytest.raises(ConfigError, match="fedit deploy init"):
        Deployment.load(tmp_path)
    with pytest.raises(ConfigError, match="unpack the bundle"):
        Site.load(tmp_path)


@pytest.mark.skipif(os.name != "posix", reason="modes of files are POSIX's")
def test_a_private_key_that_others_could_read_is_refused(changed):
    folder = changed()
    (folder / "sites/hospital-a/node.key").chmod(0o640)
    with pytest.raises(ConfigError, match=r"mode 0640.*chmod 600"):
        Site.load(folder / "sites" / "hospital-a")
    (folder / "certs/server.key").chmod(0o604)
    with pytest.raises(ConfigError, match=r"mode 0604.*chmod 600"):
        Deployment.load(folder)


def test_a_missing_key_is_named(changed):
    folder = changed()
    (folder / "sites/hospital-a/node.key").unlink()
    (folder / "certs/ca.crt").unlink()
    with pytest.raises(ConfigError, match=r"node\.key is missing"):
        Site.load(folder / "sites" / "hospital-a")
    with pytest.raises(ConfigError, match=r"ca\.crt is missing"):
        Deployment.load(folder)


def test_a_deployment_may_move(made, tmp_path):
    shutil.copytree(made.folder, tmp_path / "elsewhere")
    moved = Deployment.load(tmp_path / "elsewhere")
    assert moved.server_key == tmp_path / "elsewhere" / "certs" / "server.key"
    assert moved.name == "ward"


# --- the command ---


def test_json_names_the_folder_the_server_and_the_bundles(fedit, tmp_path):
    code, out, err = fedit(
        "deploy", "init", "--sites", "a, b", "--host", HOST, "--port", 9000, "--out", tmp_path / "d", "--json"
    )
    assert (code, err) == (0, "")
    assert json.loads(out) == {
        "folder": str(tmp_path / "d"),
        "name": "d",
        "server": "fl.example.org:9000",
        "insecure": False,
        "bundles": {site: str(tmp_path / "d" / "sites" / f"{site}.tar.gz") for site in "ab"},
    }
    assert all(Path(bundle).is_file() for bundle in json.loads(out)["bundles"].values())


def test_the_command_says_what_comes_next(fedit, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    code, out, _ = fedit("deploy", "init", "--sites", "hospital-a", "--host", HOST)
    assert code == 0
    assert "deployment/sites/hospital-a.tar.gz" in out
    assert "fedit deploy server deployment" in out
    code, _, err = fedit("deploy", "init", "--sites", "hospital-a", "--host", HOST)
    assert code == 2
    assert err.startswith("error: deployment holds a deployment already")


@pytest.mark.parametrize("arguments", [["--sites", ",", "--host", HOST], ["--sites", "A", "--host", HOST]])
def test_mistakes_end_with_2_and_no_traceback(fedit, tmp_path, arguments):
    code, out, err = fedit("deploy", "init", *arguments, "--out", tmp_path / "d")
    assert (code, out) == (2, "")
    assert err.startswith("error: ")
    assert not (tmp_path / "d").exists()


def test_init_imports_neither_flower_nor_torch(tmp_path):
    code = (
        "import sys; from pathlib import Path; from fedit.flower.init import create\n"
        f"create(Path({str(tmp_path / 'd')!r}), ['a'], 'localhost')\n"
        "print(*(name for name in ('flwr', 'torch', 'transformers') if name in sys.modules))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == ""


def test_without_the_extra_there_is_help_and_advice(tmp_path):
    """As where neither flwr nor what it brings is installed."""
    hide = (
        "from importlib.machinery import PathFinder\n"
        "real = PathFinder.find_spec\n"
        "def find_spec(name, path=None, target=None):\n"
        "    return None if name.split('.')[0] in ('flwr', 'cryptography') else real(name, path, target)\n"
        "PathFinder.find_spec = find_spec\n"
        "from fedit.cli import main; main()\n"
    )

    def call(*arguments):
        return subprocess.run(
            [sys.executable, "-c", hide, *arguments], capture_output=True, text=True, check=False, cwd=tmp_path
        )

    shown = call("deploy", "--help")
    assert shown.returncode == 0
    assert "fedit[flower]" in shown.stdout
    refused = call("deploy", "init", "--sites", "a", "--host", HOST)
    assert refused.returncode == 2
    assert "pip install 'fedit[flower]'" in refused.stderr
    assert "Traceback" not in refused.stderr
    assert not (tmp_path / "deployment").exists()


# --- files for services: their form only ---


def composed(path):
    return yaml.safe_load(path.read_text())


def test_compose_of_the_server_opens_its_port_to_this_machine_only(made):
    found = composed(made.folder / "docker" / "compose.yaml")
    server = found["services"]["server"]
    assert server["ports"] == ["127.0.0.1:8001:8000"]
    assert server["command"] == ["deploy", "server", "/deployment", "--host", "0.0.0.0", "--port", "8000"]
    assert server["volumes"] == ["..:/deployment", "cache:/cache"]
    assert set(found["volumes"]) == {"cache"}
    check_container(server)


def test_compose_of_a_node_opens_no_port_and_mounts_rows_read_only(made):
    found = composed(made.bundle("hospital-a") / "docker" / "compose.yaml")
    node = found["services"]["node"]
    assert found["name"] == "fedit-hospital-a"
    assert "ports" not in node
    assert node["command"] == ["deploy", "node", "/site", "--data", "/data/rows.jsonl"]
    rows = [volume for volume in node["volumes"] if "/data/" in volume]
    assert len(rows) == 1
    assert rows[0].endswith(":/data/rows.jsonl:ro")
    check_container(node)


def check_container(service):
    known = {
        "build", "image", "command", "user", "ports", "volumes", "tmpfs", "read_only", "cap_drop", "security_opt",
        "init", "restart", "stop_grace_period",
    }  # fmt: skip
    assert set(service) <= known
    assert service["build"] == "."
    assert service["read_only"] is True
    assert service["cap_drop"] == ["ALL"]
    assert service["security_opt"] == ["no-new-privileges:true"]
    assert service["restart"] == "unless-stopped"
    assert service["init"] is True


def test_the_image_starts_fedit_without_privileges(made):
    lines = (made.folder / "docker" / "Dockerfile").read_text().splitlines()
    words = [line.split()[0] for line in lines if line and not line.startswith(("#", " "))]
    assert words == ["FROM", "ARG", "ARG", "COPY", "RUN", "RUN", "ENV", "USER", "ENTRYPOINT"]
    assert 'ENTRYPOINT ["fedit"]' in lines
    assert "USER 1000:1000" in lines
    assert any(line.startswith("ARG FEDIT=fedit[flower]==") for line in lines)


def units(made):
    return {
        "server": made.folder / "systemd" / "fedit-server.service",
        "node": made.bundle("hospital-a") / "systemd" / "fedit-node.service",
    }


@pytest.mark.parametrize("which", ["server", "node"])
def test_units_start_what_they_should_as_a_user_of_their_own(made, which):
    unit = RawConfigParser(strict=False)
    unit.optionxform = str
    unit.read(units(made)[which])
    assert unit.sections() == ["Unit", "Service", "Install"]
    service = unit["Service"]
    command, *arguments = service["ExecStart"].split()
    assert command == "/opt/fedit/bin/fedit"
    assert arguments[:2] == ["deploy", which]
    folder = arguments[2]
    assert service["ReadWritePaths"] == service["WorkingDirectory"] == folder
    assert (service["User"], service["ProtectSystem"], service["NoNewPrivileges"]) == ("fedit", "strict", "true")
    assert (service["Restart"], service["UMask"]) == ("on-failure", "0077")
    if which == "server":
        assert arguments[3:] == ["--host", "127.0.0.1", "--port", "8001"]
    else:
        assert arguments[3:] == ["--data", "${DATA}"]
        assert int(service["RestartSec"]) >= 65  # Flower refuses a node that comes back earlier


@pytest.mark.skipif(shutil.which("systemd-analyze") is None, reason="systemd-analyze is not installed")
@pytest.mark.parametrize("which", ["server", "node"])
def test_systemd_finds_nothing_wrong_with_the_units(made, which, tmp_path):
    unit = tmp_path / units(made)[which].name
    # It would miss the program, which is not installed there.
    unit.write_text(units(made)[which].read_text().replace("/opt/fedit/bin/fedit", sys.executable))
    done = subprocess.run(
        ["systemd-analyze", "verify", "--man=no", str(unit)], capture_output=True, text=True, check=False
    )
    assert (done.returncode, done.stdout + done.stderr) == (0, "")


def test_the_proxy_lets_through_the_fleet_api_alone(made):
    text = (made.folder / "proxy" / "nginx.conf").read_text()
    lines = [line.split("#")[0].strip() for line in text.splitlines()]
    lines = [line for line in lines if line]
    assert all(line[-1] in ";{}" for line in lines)
    assert sum(line.count("{") for line in lines) == sum(line.count("}") for line in lines)
    assert [line for line in lines if line.startswith("location")] == [
        "location /v1/fleet/ {",
        "location / { return 404; }",
    ]
    # A path in proxy_pass: nginx then passes on the path that it has matched, not the one that was sent.
    assert [line for line in lines if line.startswith("proxy_pass ")] == [
        "proxy_pass https://127.0.0.1:8001/v1/fleet/;"
    ]
    assert "listen 8000 ssl;" in lines
    assert f"server_name {HOST};" in lines
    assert "proxy_ssl_verify on;" in lines


def test_the_paths_that_nodes_ask_for_are_those_that_the_proxy_lets_through():
    """Flower's own client of the fleet API asks for nothing else."""
    from flwr.supernode import fleet_http_client

    source = Path(fleet_http_client.__file__).read_text()
    paths = [part.split('"')[0] for part in source.split('path="')[1:]]
    assert len(paths) > 5
    assert all(path.startswith("/v1/fleet/") for path in paths)
