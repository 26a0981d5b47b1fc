# Completes what this project's commands take, in bash:
#
#     source scripts/completion.bash           in a checkout
#     source "$(cope-lab completion)"          where a wheel is installed
#
# python train.py pe=<TAB>   python evaluate.py run=<TAB>   python scripts/compare.py runs=outputs/<TAB>   cope-lab <TAB>
_cope_complete() {
  local folder typed python=${COMP_WORDS[0]}
  folder=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
  COMPREPLY=()
  case "$COMP_LINE" in
    *train.py\ *|*evaluate.py\ *|*generate.py\ *|*scripts/*.py\ *|*benchmarks/*.py\ *) ;;
    cope-lab\ *|*/cope-lab\ *) python=python3 ;;
    *) return ;;
  esac
  typed="${COMP_LINE:0:COMP_POINT}"
  local IFS=$'\n'
  COMPREPLY=($("$python" -S "$folder/complete.py" "$typed" 2>/dev/null))
  # Bash replaces $2, which begins after the last = or :, as those part words for it.
  typed="${typed##* }"
  COMPREPLY=("${COMPREPLY[@]#"${typed%"$2"}"}")
}
complete -o nospace -o default -F _cope_complete python python3 .venv/bin/python cope-lab
