#!/usr/bin/env python3
"""Writes the components of the programs as CycloneDX 1.5: every crate that Cargo.lock pins and that
is linked on Linux, with its digest, license and dependencies, and the wheels and programs that the
setup scripts fetch.

    python3 scripts/check/sbom.py [FILE]      FILE is sbom.cdx.json by default
"""

import hashlib
import json
import os
import re
import subprocess
import sys
import tomllib
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
TARGET = "x86_64-unknown-linux-gnu"


def crates():
    """Returns packages and edges of the resolved graph, for build and run time, without what only
    tests need."""
    cargo = os.environ.get("CARGO", "cargo")
    command = [cargo, "metadata", "--format-version", "1", "--locked", "--filter-platform", TARGET]
    metadata = json.loads(subprocess.run(command, cwd=ROOT, check=True, stdout=subprocess.PIPE).stdout)
    edges = {
        node["id"]: [
            dependency["pkg"] for dependency in node["deps"]
            if any(kind["kind"] != "dev" for kind in dependency["dep_kinds"])
        ]
        for node in metadata["resolve"]["nodes"]
    }
    reached, waiting = set(), list(metadata["workspace_members"])
    while waiting:
        package = waiting.pop()
        if package not in reached:
            reached.add(package)
            waiting.extend(edges[package])
    packages = {package["id"]: package for package in metadata["packages"] if package["id"] in reached}
    return packages, {package: edges[package] for package in packages}


def checksums():
    lock = tomllib.loads((ROOT / "Cargo.lock").read_text())
    return {(package["name"], package["version"]): package.get("checksum") for package in lock["package"]}


def wheels():
    """Yields the wheels in scripts/setup/requirements: file, name, version, digests of all their
    files."""
    for path in sorted((ROOT / "scripts/setup/requirements").glob("*.txt")):
        text = path.read_text().replace("\\\n", " ")
        for line in text.splitlines():
            found = re.match(r"([A-Za-z0-9._-]+)==([^ ;]+)", line)
            if found:
                yield path.name, found[1], found[2], re.findall(r"--hash=sha256:([0-9a-f]{64})", line)


def garage():
    text = (ROOT / "scripts/setup/setup-garage.sh").read_text()
    return re.search(r"^version=(\S+)", text, re.M)[1]


def main():
    out = Path(sys.argv[1] if len(sys.argv) > 1 else "sbom.cdx.json")
    packages, edges = crates()
    digests = checksums()
    reference = {key: f"pkg:cargo/{package['name']}@{package['version']}" for key, package in packages.items()}
    components = []
    for key, package in sorted(packages.items(), key=lambda item: reference[item[0]]):
        component = {
            "type": "library", "bom-ref": reference[key], "name": package["name"], "version": package["version"],
            "purl": reference[key],
        }
        if package["license"]:
            component["licenses"] = [{"expression": package["license"].replace("/", " OR ")}]
        if digest := digests.get((package["name"], package["version"])):
            component["hashes"] = [{"alg": "SHA-256", "content": digest}]
        if package["repository"]:
            component["externalReferences"] = [{"type": "vcs", "url": package["repository"]}]
        components.append(component)
    seen = set()
    for file, name, version, hashes in wheels():
        purl = f"pkg:pypi/{name.lower()}@{version}"
        if purl not in seen:
            seen.add(purl)
            properties = [{"name": "inheritune:requirements", "value": f"scripts/setup/requirements/{file}"}]
            # A component has the digest of one file, but a version on PyPI has one file per
            # platform.
            properties += [{"name": "inheritune:sha256", "value": digest} for digest in hashes]
            components.append({
                "type": "library", "bom-ref": purl, "name": name, "version": version, "purl": purl, "properties": properties,
            })
    purl = f"pkg:cargo/garage@{garage()}"
    components.append({
        "type": "application", "bom-ref": purl, "name": "garage", "version": garage(), "purl": purl,
        "description": "S3 server of the cluster and the benchmarks; a separate program, never linked",
    })
    members = [key for key in packages if packages[key]["source"] is None]
    root = "inheritune"
    version = max(packages[key]["version"] for key in members)
    document = {
        "bomFormat": "CycloneDX", "specVersion": "1.5", "version": 1,
        "metadata": {"component": {"type": "application", "bom-ref": root, "name": root, "version": version}},
        "components": components,
        "dependencies": [
            {"ref": root, "dependsOn": sorted(reference[key] for key in members)},
            *({"ref": reference[key], "dependsOn": sorted({reference[other] for other in edges[key]})} for key in sorted(packages)),
        ],
    }
    # The same inputs give the same document.
    digest = hashlib.sha256(json.dumps(document, sort_keys=True).encode()).hexdigest()
    document["serialNumber"] = f"urn:uuid:{digest[:8]}-{digest[8:12]}-5{digest[13:16]}-8{digest[17:20]}-{digest[20:32]}"
    out.write_text(json.dumps(document, indent=1) + "\n")
    print(f"{out}: {len(components)} components")


if __name__ == "__main__":
    main()
