#!/usr/bin/env bash
# Fetches the complete genome of Escherichia coli 536 (NC_008253, 4 938 920 bases) for `cargo run --release --example genome`, from
# Debian's package bowtie-examples, and checks it.
#
#     scripts/fetch_genome.sh [FILE]          target/genome.fna unless another FILE is named
set -euo pipefail
cd "$(dirname "$0")/.."
file=${1:-target/genome.fna}
sum=cdd0874c881adf3e1819d22b7e49cffa3c761b0793a1b1f10b1c074eeadb4789

if [ -f "$file" ] && sha256sum --status --check <<<"$sum  $file"; then
    echo "fetch_genome: $file is there"
    exit 0
fi
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
# apt downloads as a user of its own where it may write.
chmod 755 "$folder"
(cd "$folder" && apt-get download -qq bowtie-examples)
mkdir -p "$(dirname "$file")"
dpkg-deb --fsys-tarfile "$folder"/bowtie-examples_*.deb |
    tar -xO ./usr/share/doc/bowtie/examples/genomes/NC_008253.fna.gz |
    gunzip >"$folder/genome.fna"
if ! sha256sum --status --check <<<"$sum  $folder/genome.fna"; then
    echo "fetch_genome: the package's genome is not the one that was expected (SHA-256 $sum)" >&2
    exit 1
fi
mv "$folder/genome.fna" "$file"
echo "fetch_genome: $file"
