/* Threads that wait for each other in every way there is, and timers of every kind, all every
 * 10 ms. On each connection to port 8080 every byte is answered with a line: the number of bytes
 * answered on this connection, then how often each wheel has turned. */
#include <netinet/in.h>
#include <pthread.h>
#include <signal.h>
#include <stdatomic.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <sys/eventfd.h>
#include <sys/signalfd.h>
#include <sys/socket.h>
#include <sys/time.h>
#include <sys/timerfd.h>
#include <time.h>
#include <unistd.h>

enum { PORT = 8080, SERVERS = 4, MILLISECOND = 1000000 };

static atomic_ulong timer_descriptor, event_descriptor, condition_variable, posix_timer, alarms;
static int events, listener;
static pthread_mutex_t mutex = PTHREAD_MUTEX_INITIALIZER;
static pthread_cond_t changed = PTHREAD_COND_INITIALIZER;
static unsigned long posted;

static void check(int good, const char *what)
{
	if (!good) {
		perror(what);
		exit(1);
	}
}

static const struct itimerspec every = { { 0, 10 * MILLISECOND }, { 0, 10 * MILLISECOND } };

/* timerfd, which drives the eventfd */
static void *turn_timer_descriptor(void *unused)
{
	int timer = timerfd_create(CLOCK_MONOTONIC, 0);
	check(timer >= 0 && timerfd_settime(timer, 0, &every, NULL) == 0, "timerfd");
	for (uint64_t count; read(timer, &count, sizeof count) == sizeof count;) {
		timer_descriptor += count;
		check(write(events, &count, sizeof count) == sizeof count, "eventfd");
	}
	return unused;
}

/* eventfd, which drives the condition variable */
static void *turn_event_descriptor(void *unused)
{
	for (uint64_t count; read(events, &count, sizeof count) == sizeof count;) {
		event_descriptor += count;
		pthread_mutex_lock(&mutex);
		posted += count;
		pthread_cond_signal(&changed);
		pthread_mutex_unlock(&mutex);
	}
	return unused;
}

static void *turn_condition_variable(void *unused)
{
	for (;;) {
		pthread_mutex_lock(&mutex);
		while (posted == 0)
			pthread_cond_wait(&changed, &mutex);
		condition_variable += posted;
		posted = 0;
		pthread_mutex_unlock(&mutex);
	}
	return unused;
}

/* A POSIX timer whose signals a signalfd receives */
static void *turn_posix_timer(void *unused)
{
	sigset_t set;
	struct sigevent event = { .sigev_notify = SIGEV_SIGNAL, .sigev_signo = SIGUSR1 };
	struct signalfd_siginfo info;
	timer_t timer;
	sigemptyset(&set);
	sigaddset(&set, SIGUSR1);
	int signals = signalfd(-1, &set, 0);
	check(signals >= 0, "signalfd");
	check(timer_create(CLOCK_MONOTONIC, &event, &timer) == 0, "timer_create");
	check(timer_settime(timer, 0, &every, NULL) == 0, "timer_settime");
	while (read(signals, &info, sizeof info) == sizeof info)
		posix_timer += 1;
	return unused;
}

static void on_alarm(int signal)
{
	(void)signal;
	alarms += 1;
}

static void *serve(void *unused)
{
	for (;;) {
		int connection = accept(listener, NULL, NULL);
		char byte, line[200];
		for (unsigned long n = 1; read(connection, &byte, 1) == 1; n++) {
			int length = snprintf(line, sizeof line, "%lu %lu %lu %lu %lu %lu\n", n,
					      timer_descriptor, event_descriptor, condition_variable,
					      posix_timer, alarms);
			if (write(connection, line, length) != length)
				break;
		}
		close(connection);
	}
	return unused;
}

int main(void)
{
	struct sockaddr_in address = { .sin_family = AF_INET, .sin_port = htons(PORT) };
	struct sigaction action = { .sa_handler = on_alarm, .sa_flags = SA_RESTART };
	struct itimerval interval = { { 0, 10000 }, { 0, 10000 } };
	sigset_t set;
	pthread_t thread;

	sigemptyset(&set);
	sigaddset(&set, SIGUSR1);
	pthread_sigmask(SIG_BLOCK, &set, NULL);
	events = eventfd(0, 0);
	listener = socket(AF_INET, SOCK_STREAM, 0);
	check(events >= 0 && listener >= 0, "descriptors");
	check(bind(listener, (struct sockaddr *)&address, sizeof address) == 0, "bind");
	check(listen(listener, 16) == 0, "listen");
	void *(*wheels[])(void *) = { turn_timer_descriptor, turn_event_descriptor,
				      turn_condition_variable, turn_posix_timer };
	for (int i = 0; i < 4; i++)
		check(pthread_create(&thread, NULL, wheels[i], NULL) == 0, "thread");
	for (int i = 0; i < SERVERS; i++)
		check(pthread_create(&thread, NULL, serve, NULL) == 0, "thread");
	sigaction(SIGALRM, &action, NULL);
	check(setitimer(ITIMER_REAL, &interval, NULL) == 0, "setitimer");
	for (;;)
		pause();
}
