// The users API in Go, on net/http and a pool of pgx: one statement a request, rows scanned into a struct, encoding/json.
// benchmarks/README.md shows how to build it from Debian's packages, and how to compare with it.
package main

import (
	"context"
	"encoding/json"
	"errors"
	"flag"
	"log"
	"net/http"
	"os"
	"runtime"
	"strconv"
	"strings"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgconn"
	"github.com/jackc/pgx/v5/pgxpool"
)

const (
	prefix  = "/api/v1/users/"
	columns = "id, email, name, created_at, updated_at"

	listAfter  = "select " + columns + " from users where id > $1 order by id limit $2"
	listSkip   = "select " + columns + " from users order by id offset $1 limit $2"
	selectUser = "select " + columns + " from users where id = $1"
	insertUser = "insert into users (email, name) values ($1, $2) returning " + columns
	deleteUser = "delete from users where id = $1"
	// A null email was not sent. The name can be null, so a flag tells whether it was sent.
	updateUser = `update users set
		email = coalesce($2, email), name = case when $3::boolean then $4 else name end, updated_at = now()
		where id = $1 returning ` + columns
)

type user struct {
	ID        int64     `json:"id"`
	Email     string    `json:"email"`
	Name      *string   `json:"name"`
	CreatedAt time.Time `json:"created_at"`
	UpdatedAt time.Time `json:"updated_at"`
}

func (u *user) fields() []any {
	return []any{&u.ID, &u.Email, &u.Name, &u.CreatedAt, &u.UpdatedAt}
}

type server struct{ pool *pgxpool.Pool }

func main() {
	listen := flag.String("listen", "127.0.0.1:8000", "address and port")
	flag.Parse()
	if workers, err := strconv.Atoi(os.Getenv("WORKERS")); err == nil {
		runtime.GOMAXPROCS(workers)
	}
	config, err := pgxpool.ParseConfig(os.Getenv("DATABASE_URL"))
	if err != nil {
		log.Fatal(err)
	}
	config.MaxConns = int32(10 * runtime.GOMAXPROCS(0))
	pool, err := pgxpool.NewWithConfig(context.Background(), config)
	if err != nil {
		log.Fatal(err)
	}
	s := server{pool}
	http.HandleFunc(prefix, func(w http.ResponseWriter, r *http.Request) {
		rest := strings.TrimPrefix(r.URL.Path, prefix)
		id, err := strconv.ParseInt(rest, 10, 64)
		switch {
		case rest == "" && r.Method == http.MethodGet:
			s.list(w, r)
		case rest == "" && r.Method == http.MethodPost:
			s.create(w, r)
		case err != nil:
			fail(w, http.StatusNotFound, "Not Found")
		case r.Method == http.MethodGet:
			s.answer(w, r, http.StatusOK, selectUser, id)
		case r.Method == http.MethodPatch:
			s.update(w, r, id)
		case r.Method == http.MethodDelete:
			s.delete(w, r, id)
		default:
			fail(w, http.StatusMethodNotAllowed, "Method Not Allowed")
		}
	})
	log.Fatal(http.ListenAndServe(*listen, nil))
}

func (s server) list(w http.ResponseWriter, r *http.Request) {
	query := r.URL.Query()
	statement, first := listSkip, number(query.Get("skip"), 0)
	if query.Has("after") {
		statement, first = listAfter, number(query.Get("after"), 0)
	}
	rows, err := s.pool.Query(r.Context(), statement, first, number(query.Get("limit"), 100))
	if err != nil {
		refuse(w, err)
		return
	}
	defer rows.Close()
	users := []user{}
	for rows.Next() {
		var u user
		if err := rows.Scan(u.fields()...); err != nil {
			refuse(w, err)
			return
		}
		users = append(users, u)
	}
	if err := rows.Err(); err != nil {
		refuse(w, err)
		return
	}
	write(w, http.StatusOK, users)
}

func (s server) create(w http.ResponseWriter, r *http.Request) {
	var body struct{ Email, Name *string }
	if json.NewDecoder(r.Body).Decode(&body) != nil || body.Email == nil || !isAddress(*body.Email) {
		fail(w, http.StatusUnprocessableEntity, "not a user")
		return
	}
	s.answer(w, r, http.StatusCreated, insertUser, *body.Email, body.Name)
}

func (s server) update(w http.ResponseWriter, r *http.Request, id int64) {
	var body map[string]*string
	if json.NewDecoder(r.Body).Decode(&body) != nil || body["email"] != nil && !isAddress(*body["email"]) {
		fail(w, http.StatusUnprocessableEntity, "not a change of a user")
		return
	}
	name, named := body["name"]
	s.answer(w, r, http.StatusOK, updateUser, id, body["email"], named, name)
}

func (s server) delete(w http.ResponseWriter, r *http.Request, id int64) {
	tag, err := s.pool.Exec(r.Context(), deleteUser, id)
	switch {
	case err != nil:
		refuse(w, err)
	case tag.RowsAffected() == 0:
		refuse(w, pgx.ErrNoRows)
	default:
		w.WriteHeader(http.StatusNoContent)
	}
}

// answer runs a statement that returns one user.
func (s server) answer(w http.ResponseWriter, r *http.Request, status int, statement string, arguments ...any) {
	var u user
	if err := s.pool.QueryRow(r.Context(), statement, arguments...).Scan(u.fields()...); err != nil {
		refuse(w, err)
		return
	}
	write(w, status, &u)
}

func isAddress(text string) bool {
	at := strings.IndexByte(text, '@')
	return at > 0 && strings.Contains(text[at:], ".")
}

func number(text string, otherwise int64) int64 {
	if n, err := strconv.ParseInt(text, 10, 64); err == nil {
		return n
	}
	return otherwise
}

func refuse(w http.ResponseWriter, err error) {
	var answer *pgconn.PgError
	switch {
	case errors.Is(err, pgx.ErrNoRows):
		fail(w, http.StatusNotFound, "User not found")
	case errors.As(err, &answer) && answer.Code == "23505":
		fail(w, http.StatusConflict, "Email already registered")
	default:
		fail(w, http.StatusInternalServerError, "Internal Server Error")
	}
}

func fail(w http.ResponseWriter, status int, detail string) {
	write(w, status, map[string]string{"detail": detail})
}

func write(w http.ResponseWriter, status int, body any) {
	text, err := json.Marshal(body)
	if err != nil {
		status, text = http.StatusInternalServerError, nil
	}
	w.Header().Set("Content-Type", "application/json")
	w.WriteHeader(status)
	w.Write(text)
}
