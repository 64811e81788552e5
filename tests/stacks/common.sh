# What the scripts of the stacks share; they source it.
# shellcheck shell=bash
set -euo pipefail
source_tree=$(cd "$(dirname "${BASH_SOURCE[0]}")/../.." && pwd)

# Say what went wrong, and end.
fail() {
    echo "$(basename "$0"): $*" >&2
    exit 1
}

# Put the files of this tree, with changes that are not committed, into FOLDER/hessdist.
copy_tree() {
    mkdir -p "$1/hessdist"
    (cd "$source_tree" && git ls-files -z --cached --others --exclude-standard |
        tar --null --files-from=- --create) | tar --extract --directory "$1/hessdist"
}

# The folder with MNIST and CIFAR-10, if there is one: the reference problem lies beside it.
data_folder() {
    [ -z "${HESSDIST_DATA:-}" ] || (cd "$HESSDIST_DATA" && pwd)
}
