# What the scripts of the stacks share; they source it.
# shellcheck shell=bash
set -euo pipefail
source_tree=$(cd "$(dirname "${BASH_SOURCE[0]}")/../.." && pwd)

# Say what went wrong, and end.
fail() {
    echo "$(basename "$0"): $*" >&2
    exit 1
}

# Put the files of this tree, with changes that are not committed, into FOLDER/hessdist, in place of
# an earlier copy; its environment stays.
copy_tree() {
    mkdir -p "$1/hessdist"
    [ ! -e "$1/hessdist/.git" ] || fail "$1/hessdist is a checkout, and would be written over"
    find "$1/hessdist" -mindepth 1 -maxdepth 1 ! -name .venv -exec rm -rf {} +
    (cd "$source_tree" && git ls-files -z --cached --others --exclude-standard |
        tar --null --files-from=- --create) | tar --extract --directory "$1/hessdist"
}

# The folder with MNIST and CIFAR-10, if there is one: the reference problem lies beside it.
data_folder() {
    [ -z "${HESSDIST_DATA:-}" ] || (cd "$HESSDIST_DATA" && pwd)
}
