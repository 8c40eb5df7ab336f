#!/bin/bash
# Restart the metrics service of this folder, and prove that the new one answers.
#
# Usage: restart_service.sh [restart|start|stop|reload|status] [--env-file FILE] [--dry-run] [--timeout S]
#
#   restart          the default: check the new settings, start a new service, stop the running one as soon as the new
#                    one waits to take over, wait until that is ready, run health_check.py; what --check refuses, and a
#                    new one that ends before, leave the running service alone
#   start            the same without the stop; a service that runs already and is ready is fine
#   reload           check the new code and settings, have the running process load them without closing its port, wait
#                    until it answers as a new instance, run health_check.py; host, port and PID file cannot change
#   stop             end the service: SIGTERM, and SIGKILL for one that is still there after S seconds
#   status           say what is running, and whether it answers
#   --env-file FILE  settings of the service (default: metrics.env beside this script); nothing else of the calling
#                    environment reaches the service
#   --dry-run        print the commands that would change something, and change nothing
#   --timeout S      seconds for each wait: for another restart, for the stop or the reload, for the readiness
#                    (default 30, or METRICS_DRAIN_SECONDS and 10 more)
#
# Environment: PYTHON, the interpreter that runs the service (default python3).
# Exit codes: 0 done and verified, 1 not, also for bad arguments.
#             status: 0 running, 1 dead with a PID file, 3 stopped, 4 unknown (it does not answer, or is not proven).
# The service's stdout and stderr are appended to PIDFILE.out. A process is signalled only when supervision.py proves
# it to be this instance; one that systemd started is left to systemctl. Of the env file health_check.py gets
# METRICS_CHECK_CREDENTIALS and METRICS_CHECK_CA_FILE; where it would need them and they are missing, it is not run.

set -Eeuo pipefail
umask 022

VERB=restart
ENV_FILE=                     # empty until the options are read
DRY_RUN=                      # not empty: print side effects only
TIMEOUT=                      # seconds for each wait
FAILURE=1                     # exit code of die; 4 for status
PYTHON=${PYTHON:-python3}
PROC=/proc                    # where cgroups are read
HERE=$(dirname -- "$(realpath -- "${BASH_SOURCE[0]}")")
CLEAN=(env -i PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin "HOME=${HOME:-/}" LANG=C.UTF-8)
SERVICE=()                    # command line of the service
SUPERVISE=()                  # command line of supervision.py, up to its verb
TARGET=()                     # arguments that tell supervision.py which instance is meant
PID_FILE=                     # settings, as the service itself reads them
HOST=
PORT=
LOG_FILE=
DRAIN=0                       # seconds that it may take for a stop
DOUBTFUL=                     # not empty: some settings are invalid, and stand here by their default
FINDINGS=                     # what --check says of the new settings
FOUND=                        # what supervision.py found: 0 instance, 1 PID file only, 3 nothing, 4 not proven
PID=                          # of the instance found
OWNER=                        # its uid
STARTED=                      # seconds since 1970
PROOF=                        # in words
URL=                          # where it answers
INSTANCE=                     # the id that it answers with, new at every start and reload
SINCE=                        # when it was given that id, as it says itself
LOADED=                       # digest of the env file that it has loaded; of earlier releases: -
CHECKED=                      # when health_check.py asked it last, or never; of earlier releases: -
SYSTEMCTL=()                  # how to reach the manager of UNIT
UNIT=                         # systemd unit whose main process the instance is

say() {
  printf 'restart_service: %s\n' "$*" >&2
}

die() {
  say "$*"
  exit "$FAILURE"
}

usage() {
  local line
  while IFS= read -r line && [[ $line == '#'* ]]; do
    line=${line#\#}
    [[ $line == '!'* ]] || printf '%s\n' "${line# }"
  done < "${BASH_SOURCE[0]}"
}

as_time() {
  TZ=UTC printf '%(%Y-%m-%dT%H:%M:%SZ)T' "$1"
}

# Every side effect goes through here; in a dry run its command line is printed instead, ready to be replayed.
run() {
  if [[ $DRY_RUN ]]; then
    printf '[#]%s\n' "$(printf ' %q' "$@")" >&2
  else
    "$@"
  fi
}

supervise() {
  "${SUPERVISE[@]}" "$1" "${TARGET[@]}" "${@:2}"
}

parse_arguments() {
  while (($#)); do
    case $1 in
      restart | start | stop | reload | status) VERB=$1 ;;
      --env-file | --timeout)
        [[ ${2:-} ]] || die "$1 needs a value; --help shows it"
        if [[ $1 == --timeout ]]; then TIMEOUT=$2; else ENV_FILE=$2; fi
        shift ;;
      --dry-run) DRY_RUN=yes ;;
      -h | --help) usage; exit 0 ;;
      *) die "unknown argument '$1'; --help lists what there is" ;;
    esac
    shift
  done
  [[ $TIMEOUT =~ ^([0-9]+(\.[0-9]+)?)?$ ]] ||
    die "--timeout '$TIMEOUT' is not a number of seconds; write for example --timeout 30"
  [[ $VERB != status ]] || FAILURE=4
}

# The interpreter is resolved once, since its name may be found on the caller's PATH only. By a bare name it does not know its
# own path when no PATH was exported.
find_python() {
  local name=$PYTHON
  local program='import sys; sys.stdout.write(sys.executable); sys.exit(sys.version_info < (3, 6))'
  PYTHON=$("$(type -P "$name")" -c "$program" 2> /dev/null) ||
    die "'$name' is not a Python of 3.6 or newer; set PYTHON to one"
  SERVICE=("$PYTHON" "$HERE/metrics_service.py")
  SUPERVISE=("${CLEAN[@]}" "$PYTHON" "$HERE/supervision.py")
}

find_env_file() {
  if [[ $ENV_FILE ]]; then
    [[ -r $ENV_FILE ]] || die "env file $ENV_FILE is missing or cannot be read by uid $EUID; correct --env-file"
  else
    ENV_FILE=$HERE/metrics.env
    [[ -e $ENV_FILE ]] || return 0
  fi
  ENV_FILE=$(realpath -s -- "$ENV_FILE")
  SERVICE+=(--env-file "$ENV_FILE")
}

# The service itself says its settings, so that they are read in one place only. Invalid ones do not keep us from stopping it.
ask_settings() {
  local text name value certificate='' status=0
  text=$("${CLEAN[@]}" "${SERVICE[@]}" --settings 2> /dev/null) || status=$?
  if ((status != 0 && status != 78)); then
    "${CLEAN[@]}" "${SERVICE[@]}" --settings > /dev/null ||
      die "metrics_service.py could not say its settings; copy the whole folder again"
  fi
  while IFS='=' read -r name value; do
    case $name in
      METRICS_PID_FILE) PID_FILE=$value ;;
      METRICS_HOST) HOST=$value ;;
      METRICS_PORT) PORT=$value ;;
      METRICS_LOG_FILE) LOG_FILE=$value ;;
      METRICS_DRAIN_SECONDS) DRAIN=${value%%.*} ;;
      METRICS_TLS_CERT) certificate=$value ;;
    esac
  done <<< "$text"
  [[ $PID_FILE && $HOST && $PORT ]] ||
    die "metrics_service.py --settings names no PID file, host or port; copy the whole folder again"
  [[ $status -eq 0 || ! -e $ENV_FILE ]] || DOUBTFUL=yes
  [[ $TIMEOUT ]] || TIMEOUT=$((DRAIN > 20 ? DRAIN + 10 : 30))
  TARGET=(--pid-file "$PID_FILE" --host "$HOST" --port "$PORT" --timeout "$TIMEOUT" ${certificate:+--tls "$certificate"})
}

# Two restarts at once: the second waits. The lock goes with our descriptor, which the service does not inherit.
take_turn() {
  local lock
  [[ ! $DRY_RUN ]] || return 0
  { exec {lock}<> "$PID_FILE.lock"; } 2> /dev/null ||
    die "lock file $PID_FILE.lock cannot be opened for writing by uid $EUID; create its folder, or give the file to that user"
  supervise hold --descriptor "$lock" || die "nothing was done, since another restart is at work"
}

find_instance() {
  local line
  FOUND=0
  line=$(supervise find) || FOUND=$?
  read -r PID OWNER STARTED PROOF <<< "$line"
}

refuse_unproven() {
  [[ $FOUND == [013] ]] || die "nothing was done, since it is not proven that this is the service; end it by hand if it is yours"
}

# Sets URL, INSTANCE, SINCE, LOADED and CHECKED; returns as `supervision.py await` does.
ask_instance() {
  local answer status=0
  answer=$(supervise await --timeout "$1") || status=$?
  read -r URL INSTANCE SINCE LOADED CHECKED <<< "$answer"
  return "$status"
}

# A process in the cgroup of a unit is that unit's business only when it is the main process: what cron starts is in cron's.
find_unit() {
  local path manager=(systemctl)
  type -P systemctl > /dev/null || return 0
  while IFS= read -r path; do
    path=${path#*:*:}
    [[ $path == *.service ]] || continue
    [[ $path != */user@*.service/* ]] || manager=(env "XDG_RUNTIME_DIR=${XDG_RUNTIME_DIR:-/run/user/$EUID}" systemctl --user)
    if [[ $("${manager[@]}" show -p MainPID "${path##*/}" 2> /dev/null) == "MainPID=$PID" ]]; then
      UNIT=${path##*/} SYSTEMCTL=("${manager[@]}")
      say "pid $PID is the main process of $UNIT: leaving it to systemctl"
      return 0
    fi
  done < "$PROC/$PID/cgroup"
}

# Never stop a working service for one that cannot start.
preflight() {
  local status=0
  [[ -e $ENV_FILE ]] ||
    die "$ENV_FILE is missing; create it with a line METRICS_DB_PATH=/path/to/shipments.db, or name another with --env-file"
  say "checking $ENV_FILE"
  FINDINGS=$("${CLEAN[@]}" "${SERVICE[@]}" --check 2>&1 > /dev/null) || status=$?
  [[ ! $FINDINGS ]] || printf '%s\n' "$FINDINGS" >&2
  ((status == 0)) || die "metrics_service.py --check refuses the settings, so nothing was stopped or started"
  supervise check || die "the service could not be started here, so nothing was stopped or started"
}

# Older figures, with their age, are worth more than none.
keep_answering() {
  [[ $FINDINGS != *'start and not be ready'* ]] ||
    die "a new service might have no figures now, while pid $PID still answers, so nothing was stopped or started"
}

# A service restarted by another user would leave files behind that its own user cannot write.
same_owner() {
  [[ $OWNER == "$EUID" ]] ||
    die "pid $PID runs as uid $OWNER and was left alone; restart it as that user, for example with su or setpriv"
}

show_tail() {
  [[ -f $1 && -r $1 && -s $1 ]] || return 0
  say "the last lines of $1:"
  tail -n 10 -- "$1" >&2
}

give_up() {
  show_tail "$PID_FILE.out"
  show_tail "$LOG_FILE"
  find_instance
  if ((FOUND == 0)); then
    say "now running: pid $PID, which $PROOF"
  else
    say "now nothing is proven to be running"
  fi
  die "$1"
}

# Changes the instance by a verb of supervision.py that prints the new one's answer.
change_instance() {
  local answer
  answer=$(run "${SUPERVISE[@]}" "$1" "${TARGET[@]}" --old "$INSTANCE" "${@:3}") || give_up "$2"
  read -r URL INSTANCE SINCE LOADED CHECKED <<< "$answer"
}

start_instance() {
  say "starting $HERE/metrics_service.py with $PYTHON"
  change_instance "$1" "the new service is not ready" -- "${SERVICE[@]}"
}

confirm_healthy() {
  run "${SUPERVISE[@]}" confirm "${TARGET[@]}" --env-file "$ENV_FILE" -- "$PYTHON" "$HERE/health_check.py" ||
    give_up "the service answers, but health_check.py is not content"
  [[ $DRY_RUN ]] || say "done: $URL answers, instance $INSTANCE"
}

restart_unit() {
  run "${SYSTEMCTL[@]}" restart "$UNIT" || give_up "systemctl could not restart $UNIT"
  change_instance await "$UNIT was restarted, but is not ready"
  confirm_healthy
}

cmd_restart() {
  take_turn
  find_instance
  refuse_unproven
  preflight
  if ((FOUND == 0)); then
    if ask_instance 0 2> /dev/null; then
      keep_answering
    else
      say "pid $PID is not ready; restarting it all the same"
    fi
    find_unit
    if [[ $UNIT ]]; then
      restart_unit
      return
    fi
    same_owner
  fi
  trap '' HUP INT TERM      # half-way the service would stay down
  if ((FOUND == 0)); then
    start_instance replace
  else
    start_instance start
  fi
  trap - HUP INT TERM
  confirm_healthy
}

cmd_start() {
  take_turn
  find_instance
  refuse_unproven
  if ((FOUND == 0)); then
    ask_instance "$TIMEOUT" || give_up "pid $PID runs already, but is not ready"
    say "running already: pid $PID, $URL, instance $INSTANCE"
    return
  fi
  preflight
  start_instance start
  confirm_healthy
}

cmd_stop() {
  take_turn
  find_instance
  refuse_unproven
  if ((FOUND == 0)); then
    find_unit
  elif [[ $DOUBTFUL ]]; then
    die "nothing was found, but some settings of $ENV_FILE are invalid, so that it may run elsewhere; --check names them"
  else
    say "nothing is running"
  fi
  [[ ! $UNIT ]] || run "${SYSTEMCTL[@]}" stop "$UNIT" || give_up "systemctl could not stop $UNIT"
  run "${SUPERVISE[@]}" stop "${TARGET[@]}" || give_up "the service could not be stopped"    # removes a stale PID file too
  [[ $DRY_RUN ]] || ((FOUND != 0)) || say "stopped"
}

cmd_reload() {
  take_turn
  find_instance
  refuse_unproven
  ((FOUND == 0)) || die "nothing is running that could be reloaded; start it by $0 start"
  preflight
  if ask_instance 0 2> /dev/null; then
    keep_answering
  elif (($? != 3)); then
    die "pid $PID, which $PROOF, does not answer; restart it"
  fi
  find_unit
  if [[ $UNIT ]]; then
    run "${SYSTEMCTL[@]}" reload "$UNIT" || give_up "systemctl could not reload $UNIT"
    change_instance await "$UNIT was reloaded, but the new instance is not ready"
  else
    change_instance reload "the service was not reloaded" --env-file "$ENV_FILE"
  fi
  confirm_healthy
}

# Says what the env file has that the instance has not. Its time alone may lie: an older copy that was put back has an older one.
compare_settings() {
  local changed=''
  [[ -e $ENV_FILE ]] || return 0
  changed=$(as_time "$(stat -L -c %Y -- "$ENV_FILE")")
  if [[ $DOUBTFUL ]]; then
    printf 'settings: %s would be refused; --check says why\n' "$ENV_FILE"
  elif [[ $LOADED != - ]]; then
    [[ $(supervise digest --env-file "$ENV_FILE") == "$LOADED" ]] ||
      printf 'settings: %s, changed at %s, has others than it runs with; reload or restart to load them\n' "$ENV_FILE" "$changed"
  elif [[ $changed > $SINCE ]]; then
    printf 'settings: %s was changed after the start; reload or restart to load it\n' "$ENV_FILE"
  fi
}

cmd_status() {
  local answers=0 ready=ready
  find_instance
  refuse_unproven
  if ((FOUND != 0)); then
    [[ ! $DOUBTFUL ]] ||
      die "nothing was found, but some settings of $ENV_FILE are invalid, so that it may run elsewhere"
    printf 'not running\n'
    exit "$FOUND"
  fi
  ask_instance 0 || answers=$?
  ((answers == 0)) || ready='not ready'
  ((answers == 0 || answers == 3)) || die "pid $PID, which $PROOF, does not answer"
  [[ $SINCE != - ]] || SINCE=$(as_time "$STARTED")
  printf 'running: pid %s since %s, %s, instance %s, %s\n' "$PID" "$SINCE" "$URL" "$INSTANCE" "$ready"
  printf 'proof: it %s\n' "$PROOF"
  [[ $CHECKED == - ]] || printf 'checked: %s by health_check.py\n' "$CHECKED"
  compare_settings
}

main() {
  parse_arguments "$@"
  find_python
  find_env_file
  ask_settings
  "cmd_$VERB"
}

_is_sourced() {
  [[ ${BASH_SOURCE[0]} != "$0" ]]
}

_is_sourced || main "$@"
