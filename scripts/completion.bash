# Completes what this project's commands take, in bash (zsh: autoload -U bashcompinit; bashcompinit):
#
#     source scripts/completion.bash
#
# python train.py pe=<TAB>   python evaluate.py run=<TAB>   python scripts/compare.py runs=outputs/<TAB>
_cope_complete() {
  local folder typed
  folder=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
  COMPREPLY=()
  case "$COMP_LINE" in
    *train.py\ *|*evaluate.py\ *|*generate.py\ *|*scripts/*.py\ *|*benchmarks/*.py\ *) ;;
    *) return ;;
  esac
  typed="${COMP_LINE:0:COMP_POINT}"
  local IFS=$'\n'
  COMPREPLY=($("${COMP_WORDS[0]}" -S "$folder/complete.py" "$typed" 2>/dev/null))
  # Bash replaces $2, which begins after the last = or :, as those part words for it.
  typed="${typed##* }"
  COMPREPLY=("${COMPREPLY[@]#"${typed%"$2"}"}")
}
complete -o nospace -o default -F _cope_complete python python3 .venv/bin/python
