"""Tab completion in bash that understands `sandbox:`, URLs and timestamps. For zsh and fish, click's own does."""

from __future__ import annotations

import os

from click import shell_completion


class BashComplete(shell_completion.BashComplete):
    """Complete from the line as it was typed.

    Bash also splits words at `:` and `=`. Click's own class takes those for words of the command line, so that nothing
    is completed after `--base-url sandbox:`.
    """

    source_template = """\
%(complete_func)s() {
    local IFS=$'\\n' type value completion
    COMPREPLY=()
    for completion in $(env COMP_LINE="${COMP_LINE:0:COMP_POINT}" %(complete_var)s=bash_complete $1); do
        IFS=',' read type value <<< "$completion"
        case $type in
            dir) compopt -o dirnames ;;
            file) compopt -o default ;;
            plain) COMPREPLY+=("$value") ;;
        esac
    done
}
complete -o nosort -F %(complete_func)s %(prog_name)s
"""

    def get_completion_args(self) -> tuple[list[str], str]:
        """Return the arguments before the cursor, and the start of the one at the cursor."""
        line = os.environ.get("COMP_LINE")
        if line is None:  # from click's own script, which was saved to a file earlier
            return super().get_completion_args()
        words = shell_completion.split_arg_string(line)
        incomplete = "" if line[-1:].isspace() else words.pop()
        return words[1:], incomplete
