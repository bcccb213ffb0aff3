#!/bin/sh
# Stores what ESPnet's own classes generate for the small random Bagpiper model of the tests:
#     tests/references/bagpiper/espnet.sh [FOLDER]
# They run in an environment of their own, made in FOLDER, that has the espnet package and not this
# one. It needs Python 3.12 or 3.13; of what the package requires, what training and resampling need
# is left out.
set -eu
cd "$(dirname "$0")/../../.."
folder=$(mkdir -p "${1:-/tmp/bagpiper_espnet}" && cd "${1:-/tmp/bagpiper_espnet}" && pwd)
python=$folder/environment/bin/python
if [ ! -x "$python" ]; then
    python3.12 -m venv "$folder/environment"
    "$python" -m pip install --quiet --no-deps espnet==202611
    "$python" -m pip install --quiet torch==2.13.0 transformers==5.19.0 numpy pyyaml joblib soundfile
fi
export HF_HUB_OFFLINE=1 OMP_NUM_THREADS=1
"$python" tests/support/bagpiper.py "$folder"
"$python" tests/references/bagpiper/espnet.py "$folder/model" "$folder/sources" \
    "$folder/clip.npy" tests/references/bagpiper/espnet.json
